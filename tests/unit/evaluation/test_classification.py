"""Accuracies of a classifier, by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.errors import DataError
from incdet.evaluation.classification import accuracies
from incdet.evaluation.predictions import Predictions
from incdet.evaluation.results import run_results, task_result
from incdet.structures import Detections
from incdet.tasks import build_stream

STREAM = build_stream("2+2", ("a", "b", "c", "d"))


def dataset(truth: str) -> DetectionDataset:
    whole, flag = np.array([[0, 0, 4, 4]], np.float32), np.zeros(1, bool)
    return DetectionDataset(
        "letters",
        ("d", "c", "b", "a"),  # another order than the stream's
        tuple(
            ImageRecord(f"im{i}", Path("x.png"), 4, 4, whole, np.array(["dcba".index(name)]), flag, flag)
            for i, name in enumerate(truth)
        ),
    )


def predictions(*scores: list[float], classes=("a", "b", "c", "d")) -> Predictions:
    found = []
    for number, row in enumerate(scores):
        order = np.argsort(row)[::-1].copy()
        boxes = torch.zeros(len(row), 4)
        found.append((f"im{number}", Detections(boxes, torch.tensor(row)[order], torch.from_numpy(order))))
    return Predictions.from_detections(found, classes)


# The first and the third image are lost to the new classes, but not within their tasks; the fourth is wrong anyhow.
ROWS = [[0.3, 0.1, 0.5, 0.1], [0.2, 0.4, 0.3, 0.1], [0.1, 0.2, 0.0, 0.7], [0.1, 0.1, 0.2, 0.6], [0.0, 0.1, 0.2, 0.7]]


def test_accuracy_among_all_and_within_the_task():
    found = accuracies(dataset("abbcd"), predictions(*ROWS), STREAM, STREAM[1])
    assert found == {
        "top1": {"a": 0.0, "b": 0.5, "c": 0.0, "d": 1.0},
        "top1_task": {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0},
    }
    heads = accuracies(dataset("abbcd"), predictions(*ROWS), STREAM, STREAM[1], multi_head=True)
    assert heads == {"top1_task": found["top1_task"]}


def test_images_of_later_tasks_do_not_count_and_absent_classes_are_unknown():
    rows = [row[:2] for row in ROWS]
    found = accuracies(dataset("aaacd"), predictions(*rows, classes=("a", "b")), STREAM, STREAM[0])
    assert found["top1"] == {"a": pytest.approx(1 / 3), "b": None}


def test_a_class_without_a_score_is_an_error():
    with pytest.raises(DataError, match="lack 5 of 20 scores"):
        accuracies(dataset("abbcd"), predictions(*(r[:3] for r in ROWS), classes=("a", "b", "c")), STREAM, STREAM[1])


def test_a_run_of_a_classifier_has_the_same_results_file():
    results = []
    for task, rows in ((STREAM[0], [row[:2] for row in ROWS]), (STREAM[1], ROWS)):
        data, given = dataset("abbcd"), predictions(*rows, classes=task.seen)
        scores = accuracies(data, given, STREAM, task)
        results.append(task_result(data, given, STREAM, task, scores=scores))
    content = run_results("x", ["finetune"], {"tasks": [list(task.new) for task in STREAM]}, results)
    assert content["matrix"]["top1"] == [[1.0], [0.25, 0.5]]
    assert content["summary"]["top1"]["old"] == 0.25
    assert content["summary"]["top1_task"]["forgetting"] == 0.0
