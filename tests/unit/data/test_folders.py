"""One folder per class, and the digits that are written that way."""

import cv2
import numpy as np
import pytest
import torch

from incdet.data.catalog import load_dataset
from incdet.data.digits import Digits, write_digits
from incdet.data.folders import load_folders
from incdet.data.images import read_image
from incdet.errors import DataError


def picture(path, height=4, width=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def test_each_image_has_one_object_that_covers_it(tmp_path):
    picture(tmp_path / "train" / "dog" / "b.png")
    picture(tmp_path / "train" / "cat" / "a.png")
    picture(tmp_path / "train" / "cat" / "c.jpg", 8, 8)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = load_folders(tmp_path, "train")
    assert data.classes == ("cat", "dog")
    assert [image.image_id for image in data.images] == ["cat/a", "cat/c", "dog/b"]
    assert [image.labels.tolist() for image in data.images] == [[0], [0], [1]]
    assert data.images[0].boxes.tolist() == [[0, 0, 6, 4]]
    assert load_dataset(f"folders:{tmp_path}:train", classes=["dog", "cat"]).classes == ("dog", "cat")


def test_what_is_missing_is_named(tmp_path):
    picture(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(DataError, match="found none for any class"):
        load_folders(tmp_path, "test")
    with pytest.raises(DataError, match="found none for owl"):
        load_folders(tmp_path, "train", ["cat", "owl"])
    (tmp_path / "train" / "owl").mkdir()
    with pytest.raises(DataError, match="owl holds no image"):
        load_folders(tmp_path, "train")
    picture(tmp_path / "train" / "owl" / "a.png")
    picture(tmp_path / "train" / "owl" / "a.jpg")
    with pytest.raises(DataError, match="1 images share their names"):
        load_folders(tmp_path, "train")


def test_a_damaged_image_is_reported(tmp_path):
    picture(tmp_path / "train" / "cat" / "a.png")
    (tmp_path / "train" / "cat" / "b.png").write_bytes(b"nothing")
    defects = []
    data = load_folders(tmp_path, "train", report=defects.append)
    assert len(data) == 1
    assert "b.png" in str(defects[0])
    with pytest.raises(DataError, match=r"b\.png"):
        load_folders(tmp_path, "train")


def test_digits_come_back_as_they_were_written(tmp_path):
    images = torch.tensor([[0.0, 1.0, 0.2, 0.0], [1.0, 1.0, 0.0, 0.4]])
    digits = Digits("two", images, torch.tensor([3, 7]), images[:1], torch.tensor([3]))
    write_digits(digits, tmp_path / "digits")
    data = load_dataset("digits_train", tmp_path)
    assert data.classes == ("3", "7")
    pixels = read_image(data.images[1].path)
    assert pixels.shape == (3, 2, 2)
    assert pixels[0].flatten().tolist() == [255, 255, 0, 102]
    assert len(load_dataset("digits_test", tmp_path)) == 1
    with pytest.raises(DataError, match="exists already"):
        write_digits(digits, tmp_path / "digits")


def test_absent_digits_say_how_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"make_digits\.py"):
        load_dataset("digits_train", tmp_path)
