"""Precision and recall of pseudo-labels, worked by hand."""

from pathlib import Path

import numpy as np
import pytest

from incdet.data.records import ImageRecord
from incdet.evaluation.pseudo_labels import precision_and_recall

SOURCE = ("dog", "cat", "car")  # what labels of records mean
TAUGHT = ("cat", "dog")  # what labels of pseudo-labels mean
LEFT, RIGHT = [0, 0, 10, 10], [20, 0, 30, 10]


def record(*objects, crowd=(), unlabelled=()) -> ImageRecord:
    """Objects as (box, class name); ``crowd`` are positions."""
    boxes = np.array([box for box, _ in objects], dtype=np.float32).reshape(-1, 4)
    labels = np.array([SOURCE.index(name) for _, name in objects], dtype=np.int64)
    crowds = np.array([i in crowd for i in range(len(objects))], dtype=bool)
    absent = np.zeros(len(objects), dtype=bool)
    hidden = frozenset(SOURCE.index(name) for name in unlabelled)
    return ImageRecord("x", Path("x.png"), 40, 40, boxes, labels, absent, crowds, hidden)


def found(*objects) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.array([box for box, _ in objects], dtype=np.float32).reshape(-1, 4)
    return boxes, np.array([TAUGHT.index(name) for _, name in objects], dtype=np.int64)


def measure(*pairs, **options):
    records, labels = zip(*pairs, strict=True)
    return precision_and_recall(records, SOURCE, labels, TAUGHT, **options)


def test_counts_are_summed_over_images_and_classes_go_by_name():
    result = measure(
        (record((LEFT, "cat"), (RIGHT, "dog")), found((LEFT, "cat"), (LEFT, "dog"))),
        (record((LEFT, "cat"), (RIGHT, "cat")), found((RIGHT, "cat"), ([0, 20, 10, 30], "cat"))),
        (record((LEFT, "car")), found()),
    )
    assert result == {
        "cat": {"precision": pytest.approx(2 / 3, abs=1e-4), "recall": pytest.approx(2 / 3, abs=1e-4)}
        | {"given": 3, "hidden": 3},
        "dog": {"precision": 0.0, "recall": 0.0, "given": 1, "hidden": 1},
    }


def test_an_object_is_found_once():
    result = measure((record((LEFT, "cat")), found((LEFT, "cat"), ([0, 0, 10, 9], "cat"))))["cat"]
    assert result == {"precision": 0.5, "recall": 1.0, "given": 2, "hidden": 1}


def test_overlap_counts_from_the_threshold_on():
    half = [0, 0, 10, 5]  # IoU 1/2
    assert measure((record((LEFT, "cat")), found((half, "cat"))))["cat"]["recall"] == 1
    assert measure((record((LEFT, "cat")), found((half, "cat"))), iou=0.51)["cat"]["recall"] == 0


def test_figures_without_a_case_are_none():
    result = measure((record((LEFT, "cat")), found((RIGHT, "dog"))))
    assert result["cat"] == {"precision": None, "recall": 0.0, "given": 0, "hidden": 1}
    assert result["dog"] == {"precision": 0.0, "recall": None, "given": 1, "hidden": 0}


def test_crowds_are_not_there_to_be_found():
    result = measure((record((LEFT, "cat"), (RIGHT, "cat"), crowd=[1]), found((LEFT, "cat"))))["cat"]
    assert result == {"precision": 1.0, "recall": 1.0, "given": 1, "hidden": 1}


def test_where_nobody_labelled_a_class_its_labels_are_given_but_not_judged():
    result = measure(
        (record(unlabelled=["cat"]), found((LEFT, "cat"), (RIGHT, "cat"))),
        (record((LEFT, "cat")), found((LEFT, "cat"))),
    )["cat"]
    assert result == {"precision": 1.0, "recall": 1.0, "given": 3, "hidden": 1}


def test_what_hides_from_everybody_is_not_counted_as_nothing():
    result = measure((record(unlabelled=["cat"]), found((LEFT, "cat"))))
    assert result["cat"] == {"precision": None, "recall": None, "given": 1, "hidden": None}
    assert result["dog"]["hidden"] == 0
