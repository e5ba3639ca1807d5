"""COCO AP: worked by hand; equality with stock pycocotools is in tests/parity."""

from __future__ import annotations

import pytest

from incdet.errors import DataError
from incdet.evaluation.coco_ap import coco_ap

from .scenes import dataset, image, predictions

BOX = [0, 0, 100, 100]
FAR = [200, 200, 300, 300]


def test_perfect_missed_and_absent(capsys):
    data = dataset([image("a", [BOX, FAR], [0, 1])], ("cat", "dog", "cow"))
    result = coco_ap(data, predictions(data, [(0, BOX, 0.9, 0), (0, BOX, 0.9, 2)]))
    for per_class in (result.ap, result.ap50, result.ap75):
        assert per_class == {"cat": pytest.approx(1), "dog": 0, "cow": None}
    assert capsys.readouterr().out == ""


def test_each_threshold_by_hand():
    # IoU 0.8: a hit at 0.5, 0.55, ..., 0.8, seven thresholds of ten.
    data = dataset([image("a", [BOX], [0])])
    result = coco_ap(data, predictions(data, [(0, [0, 0, 100, 80], 0.9, 0)]), ["cat"])
    assert result.ap["cat"] == pytest.approx(0.7)
    assert (result.ap50["cat"], result.ap75["cat"]) == (pytest.approx(1), pytest.approx(1))


def test_classes_in_any_order_and_predictions_in_another():
    data = dataset([image("a", [BOX, FAR], [0, 1])])
    found = predictions(data, [(0, BOX, 0.9, 1)], classes=("dog", "cat"))
    result = coco_ap(data, found, ["dog", "cat"])
    assert list(result.ap) == ["dog", "cat"]
    assert result.ap == {"dog": 0, "cat": pytest.approx(1)}


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_ignored_objects_neither_count_nor_punish(flag):
    data = dataset([image("a", [BOX, FAR], [0, 0], **{flag: (1,)})])
    found = predictions(data, [(0, FAR, 0.9, 0), (0, BOX, 0.7, 0)])
    assert coco_ap(data, found, ["cat"]).ap == {"cat": pytest.approx(1)}


def test_a_difficult_object_excuses_one_detection_and_a_crowd_any_number():
    rows = [(0, FAR, 0.9, 0), (0, FAR, 0.8, 0), (0, BOX, 0.7, 0)]
    hard = dataset([image("a", [BOX, FAR], [0, 0], difficult=(1,))])
    crowd = dataset([image("a", [BOX, FAR], [0, 0], crowd=(1,))])
    assert coco_ap(hard, predictions(hard, rows), ["cat"]).ap50["cat"] == pytest.approx(0.5)
    assert coco_ap(crowd, predictions(crowd, rows), ["cat"]).ap50["cat"] == pytest.approx(1)


def test_no_detections_at_all():
    data = dataset([image("a", [BOX], [0])])
    assert coco_ap(data, predictions(data, [])).ap == {"cat": 0, "dog": None}


def test_unknown_class():
    data = dataset([image("a", [BOX], [0])])
    with pytest.raises(DataError, match="cow"):
        coco_ap(data, predictions(data, []), ["cow"])
