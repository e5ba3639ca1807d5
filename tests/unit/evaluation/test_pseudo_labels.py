"""Precision and recall of pseudo-labels."""

from dataclasses import replace

import numpy as np

from incdet.evaluation.pseudo_labels import precision_and_recall

from .scenes import image

NEAR, FAR = [0, 0, 100, 100], [200, 200, 300, 300]
CLASSES = ("cat", "dog")


def given(*items):
    boxes, labels = zip(*items, strict=True)
    return np.array(boxes, dtype=np.float32), np.array(labels)


def test_an_object_is_found_once_and_its_double_is_wrong():
    found = [given((NEAR, 0), ([0, 0, 100, 95], 0), (FAR, 1))]
    figures = precision_and_recall([image("a", [NEAR, FAR], [0, 0])], CLASSES, found, CLASSES)
    assert figures["cat"] == {"precision": 0.5, "recall": 0.5, "given": 2, "hidden": 2}
    assert figures["dog"] == {"precision": 0.0, "recall": None, "given": 1, "hidden": 0}


def test_where_nobody_labelled_the_class_nothing_is_judged():
    records = [image("a", [NEAR], [0]), replace(image("b", [], []), unlabelled=frozenset({0, 1}))]
    found = [given((NEAR, 0)), given((NEAR, 0), (FAR, 1))]
    figures = precision_and_recall(records, CLASSES, found, CLASSES)
    assert figures["cat"] == {"precision": 1.0, "recall": 1.0, "given": 2, "hidden": 1}
    assert figures["dog"] == {"precision": None, "recall": None, "given": 1, "hidden": 0}
