"""How right a classifier's predictions are, which hold every seen class with its probability for each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.errors import DataError
from incdet.evaluation.predictions import Predictions
from incdet.structures import IGNORED
from incdet.tasks import TaskSpec, TaskStream


def accuracies(
    dataset: DetectionDataset, predictions: Predictions, stream: TaskStream, task: TaskSpec, multi_head: bool = False
) -> dict[str, dict[str, float | None]]:
    """The share of each seen class's images that are classified right; None for a class without a test image.

    - ``top1``: among all seen classes; left out where there is one head per task, whose scores do not compare.
    - ``top1_task``: among the classes of the image's own task only: the task is known, as with one head per task.

    Groups of classes are averaged over classes, as everywhere in incdet; where classes have equally many test images
    that is the share of images.

    Raises:
        DataError: an image has no prediction for some seen class.
    """
    truth = np.array([_label(dataset, index, task.seen) for index in range(len(dataset))])
    scores = _score_matrix(dataset, predictions, task.seen)
    task_of = np.repeat(np.arange(task.index), [len(step.new) for step in stream.tasks[: task.index]])
    seen = truth >= 0
    truth, scores = truth[seen], scores[seen]
    own = np.where(task_of[truth][:, None] == task_of, scores, -np.inf)
    right = {} if multi_head else {"top1": scores.argmax(axis=1) == truth}
    right["top1_task"] = own.argmax(axis=1) == truth
    return {
        metric: {
            name: float(hits[truth == label].mean()) if (truth == label).any() else None
            for label, name in enumerate(task.seen)
        }
        for metric, hits in right.items()
    }


def multi_label_ap(
    dataset: DetectionDataset, predictions: Predictions, task: TaskSpec
) -> dict[str, dict[str, float | None]]:
    """``multi_label_ap``: how well each seen class's score ranks the images that show it; None where none does.

    All images are ranked, also those of later tasks. An image in which every object of a class is difficult or crowd,
    or which was not labelled with the class, counts neither for that class nor against it, as in VOC's classification.

    Raises:
        DataError: an image has no prediction for some seen class.
    """
    scores = _score_matrix(dataset, predictions, task.seen)
    known = np.stack([_presence(dataset, image) for image in dataset.images])
    found = {}
    for column, name in enumerate(task.seen):
        of_class = known[:, dataset.classes.index(name)]
        judged = of_class != IGNORED
        found[name] = average_precision(scores[judged, column], of_class[judged] == 1)
    return {"multi_label_ap": found}


def average_precision(scores: np.ndarray, present: np.ndarray) -> float | None:
    """The mean over the positives of the precision at their scores, not interpolated; None without a positive.

    Args:
        scores: (n,); of equal ones none is ranked before another.
        present: (n,) bool.
    """
    if not present.any():
        return None
    positive, ranked = np.sort(scores[present]), np.sort(scores)
    hits = len(positive) - np.searchsorted(positive, positive)
    return float((hits / (len(ranked) - np.searchsorted(ranked, positive))).mean())


def _presence(dataset: DetectionDataset, image: ImageRecord) -> np.ndarray:
    """Of each class of the data set (K,): 1 present, 0 absent, IGNORED where that is not judged."""
    known = np.zeros(len(dataset.classes), np.int64)
    sure = ~(image.difficult | image.crowd)
    known[[*image.labels[~sure], *image.unlabelled]] = IGNORED
    known[image.labels[sure]] = 1
    return known


def _label(dataset: DetectionDataset, index: int, seen: Sequence[str]) -> int:
    """The image's class as a position in ``seen``; -1 for a class of a later task."""
    name = dataset.classes[int(dataset.images[index].labels[0])]
    return seen.index(name) if name in seen else -1


def _score_matrix(dataset: DetectionDataset, predictions: Predictions, classes: Sequence[str]) -> np.ndarray:
    """(images, classes)."""
    rows = predictions.positions_in([image.image_id for image in dataset.images], dataset.name)
    column = np.array([classes.index(name) if name in classes else -1 for name in predictions.classes])
    columns = column[predictions.labels]
    scores = np.full((len(dataset), len(classes)), np.nan)
    scores[rows[columns >= 0], columns[columns >= 0]] = predictions.scores[columns >= 0]
    if np.isnan(scores).any():
        raise DataError(
            f"The predictions lack {int(np.isnan(scores).sum())} of {scores.size} scores: expected every seen class "
            f"for every image of '{dataset.name}'. Test the model again (--eval-only)."
        )
    return scores
