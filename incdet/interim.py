"""An interim detector: one of a task's new classes alone, to be a second teacher beside the old detector.

It sees the labels that the task gives and no others, so it learns the new classes without remembering the old ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from incdet.data.views import TaskView
from incdet.tasks import TaskSpec

FOLDER = "interim"  # of the stage, in the task's


def train_interim(student: Any, view: TaskView, train: Callable[..., None], iterations: int | None = None) -> Any:
    """Train the interim detector of a task in a stage of its own; a task that begins again finds it there.

    It starts as the student does: from the old detector, with new rows in its head for the new classes.

    Args:
        student: the detector that is about to learn the task; left as it is.
        view: what the task may see, before any method added to it.
        train: ``TaskContext.train``.
        iterations: of the stage; None = the task's own. All else of the schedule is the task's.

    Returns:
        A detector of the new classes, labelled from 0, in eval mode and without gradients.
    """
    interim = copy.deepcopy(student)
    interim.drop_classes(view.task.num_old)
    train(interim, new_classes_only(view), FOLDER, {} if iterations is None else {"MAX_ITER": iterations}, ())
    interim.zero_grad()  # what the last step left would stay in memory
    return interim.eval().requires_grad_(False)


def new_classes_only(view: TaskView) -> TaskView:
    """The view as a task that knows no old classes: its labels start at 0."""
    task = view.task
    images = tuple(
        replace(
            image,
            labels=image.labels - task.num_old,
            labelled=frozenset(label - task.num_old for label in image.labelled),
        )
        for image in view.images
    )
    return replace(view, task=TaskSpec(task.index, (), task.new), images=images)
