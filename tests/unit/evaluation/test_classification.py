"""Accuracies of a classifier, by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.errors import DataError
from incdet.evaluation.classification import accuracies, average_precision, multi_label_ap
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


def labelled(*texts: str, unlabelled: str = "") -> DetectionDataset:
    """One image per text: a letter per object, ``?`` after a difficult one; ``unlabelled`` in the last image."""
    records = []
    for number, text in enumerate(texts):
        letters = [letter for letter in text if letter != "?"]
        difficult = np.array([text[i + 1 : i + 2] == "?" for i, letter in enumerate(text) if letter != "?"], bool)
        labels = np.array(["dcba".index(letter) for letter in letters], np.int64)
        boxes = np.tile(np.array([[0, 0, 4, 4]], np.float32), (len(letters), 1))
        unknown = frozenset("dcba".index(letter) for letter in unlabelled) if number == len(texts) - 1 else frozenset()
        flag = np.zeros(len(letters), bool)
        records.append(ImageRecord(f"im{number}", Path("x.png"), 4, 4, boxes, labels, difficult, flag, unknown))
    return DetectionDataset("letters", ("d", "c", "b", "a"), tuple(records))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns(seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, 60) / 8 if ties else rng.random(60)
    present = rng.random(60) < 0.2
    assert average_precision(scores, present) == pytest.approx(average_precision_score(present, scores))


def test_average_precision_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision(scores, np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, np.array([False, False, False, True])) == 0.25
    assert average_precision(scores, np.zeros(4, bool)) is None


def test_every_label_of_an_image_counts_for_its_own_class():
    rows = [[0.9, 0.2], [0.8, 0.9], [0.1, 0.3], [0.5, 0.8]]
    given = predictions(*rows, classes=("a", "b"))
    found = multi_label_ap(labelled("aba", "b", "a", "c"), given, STREAM[0])
    # a: images 0 and 2, of ranks 1 and 4; b: images 0 and 1, of ranks 4 and 1. Images of later classes are ranked too.
    assert found == {"multi_label_ap": {"a": pytest.approx((1 + 2 / 4) / 2), "b": pytest.approx((1 + 2 / 4) / 2)}}


def test_images_where_a_class_is_uncertain_are_not_judged_for_it():
    rows = [[0.9, 0.2], [0.8, 0.9], [0.7, 0.3], [0.6, 0.8]]
    given = predictions(*rows, classes=("a", "b"))
    found = multi_label_ap(labelled("a?", "a?a", "b", "ba", unlabelled="a"), given, STREAM[0])["multi_label_ap"]
    assert found["a"] == pytest.approx((1 + 2 / 3) / 2)  # the first image is left out; a sure object outweighs
    assert multi_label_ap(labelled("b", "b", "b", "b", unlabelled="a"), given, STREAM[0])["multi_label_ap"]["a"] is None
    without = multi_label_ap(labelled("a", "b", "b", "b", unlabelled="a"), given, STREAM[0])["multi_label_ap"]
    assert without["a"] == 1.0


def test_a_class_without_a_score_is_an_error_with_several_labels_too():
    with pytest.raises(DataError, match="lack 1 of 2 scores"):
        multi_label_ap(labelled("ab"), predictions([0.5], classes=("a",)), STREAM[0])
