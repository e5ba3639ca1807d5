"""CIFAR-100's binary records become images in a folder of their class, or a message that says what is wrong."""

import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from incdet.data import cifar
from incdet.data.catalog import load_dataset
from incdet.data.cifar import read_records, write_cifar
from incdet.data.images import read_image
from incdet.errors import DataError

SCRIPT = Path(__file__).parents[3] / "datasets" / "prepare_cifar.py"
LABELS = {"train": [1, 0, 1], "test": [0, 1]}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for split, labels in LABELS.items():
        monkeypatch.setitem(cifar.IMAGES, split, len(labels))


def pixels_of(number: int) -> np.ndarray:
    """(3, 32, 32): red counts the columns, green the rows, blue is the record's number."""
    red, green = np.meshgrid(np.arange(32), np.arange(32))
    return np.stack([red, green, np.full((32, 32), number)]).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("apple\naquarium_fish\n\n")
    for split, labels in LABELS.items():
        records = [bytes([7, label]) + pixels_of(number).tobytes() for number, label in enumerate(labels)]
        (folder / f"{split}.bin").write_bytes(b"".join(records))
    return folder


def test_written_images_are_those_of_the_records(folder, tmp_path):
    assert write_cifar(folder, tmp_path / "data" / "cifar100") == 5
    dataset = load_dataset("cifar100_train", tmp_path / "data")
    assert dataset.classes == ("apple", "aquarium_fish")
    found = {image.image_id: image for image in dataset.images}
    assert sorted(found) == ["apple/00001", "aquarium_fish/00000", "aquarium_fish/00002"]
    assert np.array_equal(read_image(found["aquarium_fish/00002"].path).numpy(), pixels_of(2))
    assert len(load_dataset("cifar100_test", tmp_path / "data")) == 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar100"]


def test_the_script_takes_the_archive(folder, tmp_path, monkeypatch, capsys):
    archive = tmp_path / "cifar-100-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(sys, "argv", ["prepare_cifar", str(archive), "--output", str(tmp_path / "out")])
    for status, words in ((0, "5 images"), (1, "exists already")):
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert stop.value.code == status
        assert words in "".join(capsys.readouterr())


@pytest.mark.parametrize("cut", [1, 3074])
def test_a_file_that_was_cut_short_leaves_nothing_behind(folder, tmp_path, cut):
    path = folder / "test.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=rf"test\.bin: expected 2 records of 3074 bytes.*got {2 * 3074 - cut} bytes"):
        write_cifar(folder, tmp_path / "cifar100")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-100-binary"]


def test_a_label_without_a_name_is_refused(folder):
    with pytest.raises(DataError, match=r"record 0 has the fine label 1, and fine_label_names\.txt names 1 classes"):
        read_records(folder, "train", 1)


@pytest.mark.parametrize("names", ["", "apple\napple\n", "apple\n../fish\n"])
def test_names_that_cannot_be_folders_are_refused(folder, tmp_path, names):
    (folder / "fine_label_names.txt").write_text(names)
    with pytest.raises(DataError, match="one class per line"):
        write_cifar(folder, tmp_path / "cifar100")


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "train.bin").unlink()
    with pytest.raises(DataError, match=r"train\.bin cannot be read.*cifar-100-binary\.tar\.gz"):
        write_cifar(folder, tmp_path / "cifar100")


def test_pickles_are_not_opened(folder, tmp_path):
    python = folder.rename(tmp_path / "cifar-100-python")
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(python, python.name)
    for source in (python, archive):
        with pytest.raises(DataError, match=r"pickles.*binary version"):
            write_cifar(source, tmp_path / "cifar100")


def test_an_absent_set_names_the_script(tmp_path):
    with pytest.raises(DataError, match=r"prepare_cifar\.py"):
        load_dataset("cifar100_train", tmp_path)
