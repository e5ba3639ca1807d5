"""Tensors beside a model: what is written is read back, and what is damaged says so."""

import pytest
import torch
from safetensors.torch import save_file

from incdet.errors import CheckpointError
from incdet.tensors import bytes_beside, load_tensors, save_tensors

REMEDY = "Make it again."


def test_tensors_and_notes_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"mean": torch.arange(6.0).view(2, 3).T, "counts": torch.tensor([1, 2])}
    save_tensors(path, "means", tensors, {"classes": ["a", "b"], "seen": 3})
    loaded, notes = load_tensors(path, "means", REMEDY)
    assert notes == {"classes": ["a", "b"], "seen": 3}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_a_file_may_hold_nothing_but_notes(tmp_path):
    save_tensors(tmp_path / "a.safetensors", "means", {}, 7)
    assert load_tensors(tmp_path / "a.safetensors", "means", REMEDY) == ({}, 7)


def test_a_missing_or_damaged_file_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=r"a\.safetensors \(means\) cannot be read.*Make it again\."):
        load_tensors(path, "means", REMEDY)
    save_tensors(path, "means", {"x": torch.zeros(100)}, None)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(path, "means", REMEDY)


def test_a_file_of_another_kind_is_refused(tmp_path):
    save_tensors(tmp_path / "a.safetensors", "bases", {}, None)
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    for name in "ab":
        with pytest.raises(CheckpointError, match="expected a file of means"):
            load_tensors(tmp_path / f"{name}.safetensors", "means", REMEDY)


def test_what_lies_beside_a_model_is_counted_without_the_model_and_without_other_folders(tmp_path):
    model = tmp_path / "task_2" / "model.safetensors"
    assert bytes_beside(model) == 0  # no such folder yet
    for file, size in {
        "task_1/bases.safetensors": 1,  # the second task's has all that is still needed of it
        "task_2/bases.safetensors": 10,
        "task_2/keys.safetensors": 100,
        "task_2/model.safetensors": 1_000,
        "task_2/predictions.json": 10_000,
        "task_2/interim/model.safetensors": 100_000,
        "memory/features.safetensors": 1_000_000,
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(bytes(size))
    assert bytes_beside(model) == 110
