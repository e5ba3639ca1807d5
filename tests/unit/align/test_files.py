"""Aligners survive the disk with their provenance; other files are refused."""

import json

import pytest
import safetensors.torch
import torch

import incdet
from incdet.align.baselines import fit_mean_shift, fit_ridge
from incdet.align.files import load_aligner, save_aligner
from incdet.align.fit import EnergySettings, fit_energy
from incdet.errors import CheckpointError


def fitted(kind: str):
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 30, 6, generator=generator)
    if kind == "energy":
        return fit_energy(old, new, EnergySettings(hidden=(8, 4), iterations=2, steps=3), show_progress=False)
    return {"mean_shift": fit_mean_shift, "ridge": fit_ridge}[kind](old, new)


@pytest.mark.parametrize("kind", ["energy", "mean_shift", "ridge"])
def test_what_is_saved_comes_back(kind, tmp_path):
    aligner, features = fitted(kind), torch.randn(5, 6)
    save_aligner(tmp_path / "aligner.safetensors", aligner, 15, regions="foreground")
    before = torch.get_rng_state()
    loaded = load_aligner(tmp_path / "aligner.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(aligner)
    assert torch.equal(loaded(features), aligner(features))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in aligner.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    known = {"latents": 30, "num_old": 15, "regions": "foreground", "incdet": incdet.__version__}
    assert known.items() <= loaded.provenance.items()


def test_the_energy_keeps_its_settings_and_its_precision(tmp_path):
    save_aligner(tmp_path / "aligner.safetensors", fitted("energy").double(), 15)
    loaded = load_aligner(tmp_path / "aligner.safetensors")
    assert loaded.dtype == loaded.threshold.dtype == torch.float64
    assert (loaded.steps, loaded.step_size) == (3, 0.1)
    assert loaded.provenance["settings"]["hidden"] == [8, 4]


def test_a_file_that_is_missing_or_cut_short_is_refused(tmp_path):
    path = tmp_path / "aligner.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_aligner(path)
    save_aligner(path, fitted("ridge"), 15)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_aligner(path)


GOOD = {"kind": "mean_shift", "arguments": {"width": 3}, "provenance": {}}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"shift": torch.zeros(3)}, None),
        ({"shift": torch.zeros(3)}, "not json"),
        ({"shift": torch.zeros(3)}, json.dumps([GOOD])),
        ({"shift": torch.zeros(3)}, json.dumps({**GOOD, "kind": "detector"})),
        ({"shift": torch.zeros(3)}, json.dumps({**GOOD, "arguments": {"depth": 3}})),
        ({"shift": torch.zeros(4)}, json.dumps(GOOD)),
        ({"weight": torch.zeros(3)}, json.dumps(GOOD)),
    ],
)
def test_a_file_of_something_else_is_refused(tensors, metadata, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tensors, path, None if metadata is None else {"incdet_aligner": metadata})
    with pytest.raises(CheckpointError, match="is not an aligner"):
        load_aligner(path)
