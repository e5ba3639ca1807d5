"""What a task may see of a dataset.

A ``TaskView`` is the training data of one task: images with the objects that are labelled *for that task*. The
untouched record stays beside them so that what was hidden can be counted and pseudo-labels can be measured; nothing
in a view's visible arrays comes from a hidden label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from incdet.data.records import ImageRecord
from incdet.tasks import TaskSpec


@dataclass(frozen=True, eq=False)
class TrainImage:
    """One image as a task trains on it. Labels are in stream order (``TaskStream.classes``)."""

    record: ImageRecord
    boxes: np.ndarray  # (n, 4) float32, original pixels
    labels: np.ndarray  # (n,) int64, stream order
    weights: np.ndarray  # (n,) float32
    use_rpn: np.ndarray  # (n,) bool, see incdet.structures.Target
    use_roi: np.ndarray  # (n,) bool
    labelled: frozenset[int]  # stream classes of which every object is labelled in this image
    source: str = "task"  # "task" or "memory"


@dataclass(frozen=True, eq=False)
class TaskView:
    """The training images of one task."""

    task: TaskSpec
    images: tuple[TrainImage, ...]

    def __len__(self) -> int:
        return len(self.images)
