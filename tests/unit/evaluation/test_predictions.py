"""Predictions: to a COCO results file and back, and every way a foreign file can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from incdet.errors import DataError, IncdetError
from incdet.evaluation.predictions import Predictions, coco_categories, read_predictions, write_predictions
from incdet.structures import Detections

from .scenes import dataset, image, random_scene

ENTRY = {"image_id": "000007", "category_id": 2, "bbox": [10, 20, 30, 40], "score": 0.5}


@pytest.fixture
def data():
    return dataset([image("000007", [], []), image("2007_000027", [], []), image("139", [], [])])


@pytest.fixture
def read(data, tmp_path):
    """Reads what is given as a predictions file of ``data``."""

    def read(content, **options):
        path = tmp_path / "predictions.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_predictions(path, data, **options)

    return read


def test_from_detections():
    one = Detections(torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]), torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = Predictions.from_detections([("a", none), ("b", one)], ("cat", "dog"))
    assert found.image_ids == ("a", "b")
    assert len(found) == 2
    np.testing.assert_array_equal(found.image_index, [1, 1])
    np.testing.assert_array_equal(found.labels, [1, 0])
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert len(Predictions.from_detections([], ("cat",))) == 0


def test_the_file_holds_the_arrays_to_the_bit(tmp_path):
    scene, found = random_scene(0)
    write_predictions(tmp_path / "p.json", found)
    again = read_predictions(tmp_path / "p.json", scene)
    for field in ("image_index", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(again, field), getattr(found, field))


def test_what_is_written_is_coco(data, tmp_path):
    boxes = np.array([[10, 20, 40, 60], [0, 0, 1, 1]], dtype=np.float32)
    ids = tuple(record.image_id for record in data.images)
    found = Predictions(ids, data.classes, np.array([0, 2]), boxes, np.array([0.5, 0.25], np.float32), np.array([1, 0]))
    write_predictions(tmp_path / "p.json", found)
    plain = {"image_id": 139, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.25}  # a number, as COCO's tools expect
    assert json.loads((tmp_path / "p.json").read_text()) == [ENTRY, plain]


def test_image_ids_as_text_or_number(read):
    found = read([ENTRY | {"image_id": image_id} for image_id in ("000007", 7, 139, "139", "2007_000027")])
    np.testing.assert_array_equal(found.image_index, [0, 0, 2, 2, 1])
    np.testing.assert_array_equal(found.boxes[0], [10, 20, 40, 60])


def test_category_ids_follow_the_class_order_or_the_annotation_file(read, tmp_path):
    assert read([ENTRY]).labels == [1]
    assert read([ENTRY], classes=("dog", "cat")).classes == ("dog", "cat")
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps({"categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]}))
    found = read([ENTRY | {"category_id": 17}], classes=("dog", "cat"), categories=coco_categories(annotations))
    assert found.labels == [1]


def test_an_annotation_file_without_categories(tmp_path):
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(DataError, match="categories"):
        coco_categories(tmp_path / "bad.json")


def test_an_empty_list_is_a_detector_that_found_nothing(read):
    found = read([])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_id": "000008"}, "entry 1: image_id '000008' is not in the data set 'scenes'.*did you mean '000007'"),
        ({"image_id": ["000007"]}, "entry 1: image_id"),
        ({"category_id": 3}, "entry 1: category_id 3 is not in the scored categories"),
        ({"category_id": "dog"}, r"category_id 'dog'.*1 \(cat\), 2 \(dog\)"),
        ({"bbox": [1, 2, 3]}, "entry 1 must look like"),
        ({"bbox": "1 2 3 4"}, "entry 1 must look like"),
        ({"bbox": [1, 2, None, 4]}, "entry 1 must look like"),
        ({"bbox": [1, 2, -3, 4]}, "width and height of at least 0; the first is entry 1"),
        ({"bbox": [1, 2, float("nan"), 4]}, "finite numbers; the first is entry 1"),
        ({"score": float("inf")}, "finite numbers; the first is entry 1"),
        ({"score": "high"}, "entry 1 must look like"),
        ({"score": 87.5}, "score between 0 and 1; the first is entry 1"),
        ({"score": -0.1}, "score between 0 and 1"),
    ],
)
def test_wrong_values_are_named(read, wrong, message):
    with pytest.raises(DataError, match=message):
        read([ENTRY, ENTRY | wrong])


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score"])
def test_missing_keys_are_named(read, key):
    with pytest.raises(DataError, match="entry 0 must look like"):
        read([{name: value for name, value in ENTRY.items() if name != key}])


def test_other_content(read, data, tmp_path):
    with pytest.raises(DataError, match="must be a JSON list"):
        read({"annotations": []})
    with pytest.raises(DataError, match="entry 0 must look like"):
        read([3])
    with pytest.raises(IncdetError, match="not whole JSON"):
        read(json.dumps([ENTRY])[:-5])
    with pytest.raises(IncdetError, match="does not exist"):
        read_predictions(tmp_path / "absent.json", data)
