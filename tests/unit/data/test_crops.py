"""What is cut out of detection images, and that a folder of crops is whole, or not there."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from incdet.data import crops
from incdet.data.catalog import load_dataset
from incdet.data.crops import write_crops
from incdet.data.images import read_image
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def data(tmp_path) -> DetectionDataset:
    """Red left of x = 40 and blue right of it, an object on either side, then a crowd, a difficult and a tiny one."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = RED, BLUE
    Image.fromarray(pixels).save(tmp_path / "im.png")
    boxes = np.array([[10, 10, 30, 30], [50, 10, 70, 50], [0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 7, 7]], np.float32)
    flags = np.zeros((2, 5), bool)
    flags[0, 2] = flags[1, 3] = True
    record = ImageRecord("a/im", tmp_path / "im.png", 80, 60, boxes, np.array([0, 1, 0, 0, 0]), *flags)
    return DetectionDataset("two", ("cat", "dog/wolf"), (record,))


def test_every_plain_object_is_cut_into_its_class(data, tmp_path):
    assert write_crops(data, tmp_path / "crops", size=16, context=0.0) == 2
    found = sorted(str(path.relative_to(tmp_path / "crops")) for path in (tmp_path / "crops").rglob("*.png"))
    assert found == ["cat/a-im_0.png", "dog-wolf/a-im_1.png"]
    for name, colour in zip(found, (RED, BLUE), strict=True):
        image = read_image(tmp_path / "crops" / name)
        assert image.shape == (3, 16, 16)
        assert image.flatten(1).float().mean(1).tolist() == pytest.approx(colour, abs=1)


def test_context_is_a_share_of_the_longer_side(data, tmp_path):
    """The red square, 20 pixels wide, reaches from 0 to 40 with half of its width around it; with 0.75, five beyond."""
    write_crops(data, tmp_path / "half", size=40, context=0.5)
    assert (read_image(tmp_path / "half/cat/a-im_0.png")[0] == 255).all()
    write_crops(data, tmp_path / "more", size=50, context=0.75)
    blue = read_image(tmp_path / "more/cat/a-im_0.png")[2] == 255
    assert blue[:, -5:].all()
    assert not blue[:, :-5].any()  # beyond the left border the border is repeated


def test_the_folder_is_read_as_classes(data, tmp_path):
    write_crops(data, tmp_path / "crops", 16, 0.25)
    again = load_dataset(f"folders:{tmp_path}:crops")
    assert (again.classes, len(again)) == (("cat", "dog-wolf"), 2)


def test_the_same_crops_are_not_cut_twice_and_others_are_refused(data, tmp_path, monkeypatch):
    folder = tmp_path / "crops"
    write_crops(data, folder, 16, 0.25)
    with monkeypatch.context() as patched:
        patched.setattr(crops, "read_image", None)
        assert write_crops(data, folder, 16, 0.25) == 2
    fewer = replace(data, images=(replace(data.images[0], labels=np.array([1, 1, 0, 0, 0])),))
    for dataset, size, context in ((data, 32, 0.25), (data, 16, 0.5), (fewer, 16, 0.25)):
        with pytest.raises(DataError, match="holds other images than the crops asked for"):
            write_crops(dataset, folder, size, context)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="mine holds other images"):
        write_crops(data, tmp_path / "mine", 16, 0.25)


def test_a_cut_that_was_interrupted_is_done_again(data, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(crops, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write_crops(data, tmp_path / "crops", 16, 0.25)
    assert not any("crops" in path.name for path in tmp_path.iterdir())
    monkeypatch.undo()
    write_crops(data, tmp_path / "crops", 16, 0.25)
    assert sorted(path.name for path in (tmp_path / "crops").iterdir()) == ["cat", "crops.json", "dog-wolf"]


def test_nothing_to_cut(data, tmp_path):
    record = replace(data.images[0], crowd=np.ones(5, bool))
    with pytest.raises(DataError, match="'two' has no object to cut out"):
        write_crops(replace(data, images=(record,)), tmp_path / "crops", 16, 0.25)
