"""Aligners survive the disk with their provenance; other files are refused."""

import json

import pytest
import safetensors.torch
import torch

import incdet
from incdet.align.baselines import fit_mean_shift, fit_ridge
from incdet.align.files import load_chain, save_chain
from incdet.align.fit import EnergySettings, fit_energy
from incdet.align.gates import Link
from incdet.align.paired import fit_paired_energy
from incdet.errors import CheckpointError


def fitted(kind: str):
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 30, 6, generator=generator)
    if kind == "energy":
        return fit_energy(old, new, EnergySettings(hidden=(8, 4), iterations=2, steps=3), show_progress=False)
    if kind == "energy_paired":
        return fit_paired_energy(old, new, iterations=2, show_progress=False)
    return {"mean_shift": fit_mean_shift, "ridge": fit_ridge}[kind](old, new)


@pytest.mark.parametrize("kind", ["energy", "energy_paired", "mean_shift", "ridge"])
def test_what_is_saved_comes_back(kind, tmp_path):
    aligner, features = fitted(kind), torch.randn(5, 6)
    save_chain(tmp_path / "aligner.safetensors", [Link(aligner, 15)], regions="foreground")
    before = torch.get_rng_state()
    (link,) = load_chain(tmp_path / "aligner.safetensors")
    loaded = link.aligner
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(aligner)
    assert torch.equal(loaded(features), aligner(features))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in aligner.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert link.num_old == 15
    known = {"latents": 30, "regions": "foreground", "incdet": incdet.__version__}
    assert known.items() <= loaded.provenance.items()


def test_the_energy_keeps_its_settings_and_its_precision(tmp_path):
    save_chain(tmp_path / "aligner.safetensors", [Link(fitted("energy").double(), 15)])
    (link,) = load_chain(tmp_path / "aligner.safetensors")
    loaded = link.aligner
    assert loaded.dtype == loaded.threshold.dtype == torch.float64
    assert (loaded.steps, loaded.step_size) == (3, 0.1)
    assert loaded.provenance["settings"]["hidden"] == [8, 4]


def test_a_file_that_is_missing_or_cut_short_is_refused(tmp_path):
    path = tmp_path / "aligner.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_chain(path)
    save_chain(path, [Link(fitted("ridge"), 15)])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_chain(path)


GOOD = {"kind": "mean_shift", "arguments": {"width": 3}, "num_old": 2, "provenance": {}}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"0.shift": torch.zeros(3)}, None),
        ({"0.shift": torch.zeros(3)}, "not json"),
        ({"0.shift": torch.zeros(3)}, json.dumps(GOOD)),
        ({"0.shift": torch.zeros(3)}, json.dumps([{**GOOD, "kind": "detector"}])),
        ({"0.shift": torch.zeros(3)}, json.dumps([{**GOOD, "arguments": {"depth": 3}}])),
        ({"0.shift": torch.zeros(3)}, json.dumps([{**GOOD, "num_old": None}])),
        ({"0.shift": torch.zeros(4)}, json.dumps([GOOD])),
        ({"0.weight": torch.zeros(3)}, json.dumps([GOOD])),
        ({"0.shift": torch.zeros(3)}, json.dumps([GOOD, GOOD])),
    ],
)
def test_a_file_of_something_else_is_refused(tensors, metadata, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tensors, path, None if metadata is None else {"incdet_aligner": metadata})
    with pytest.raises(CheckpointError, match="holds no aligners"):
        load_chain(path)


def test_a_chain_keeps_its_order_and_may_be_empty(tmp_path):
    path = tmp_path / "aligner.safetensors"
    save_chain(path, [])
    assert load_chain(path) == []
    save_chain(path, [Link(fitted("ridge"), 2), Link(fitted("mean_shift"), 4)], regions="all")
    first, last = load_chain(path)
    assert [first.aligner.kind, first.num_old, last.aligner.kind, last.num_old] == ["ridge", 2, "mean_shift", 4]
    assert "regions" not in first.aligner.provenance
    assert last.aligner.provenance["regions"] == "all"
