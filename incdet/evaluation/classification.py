"""Accuracy of a classifier's predictions, which hold every seen class with its probability for each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from incdet.data.records import DetectionDataset
from incdet.errors import DataError
from incdet.evaluation.predictions import Predictions
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
