"""What a task may see of a dataset.

A ``TaskView`` is the training data of one task: images with the objects that are labelled *for that task*. The
untouched record stays beside them so that what was hidden can be counted and pseudo-labels can be measured; nothing
in a view's visible arrays comes from a hidden label.

Which images a task trains on is the *protocol* (``incdet.data.protocols``). What becomes of objects flagged difficult
is the *difficult policy*: ``keep`` teaches them like any other, ``drop`` deletes them, ``ignore`` keeps their boxes
unused, so that they are taught neither as objects nor as background. Crowd objects are always ignored that way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from incdet.data.protocols import PROTOCOLS, ObjectTable, assign_images, dataset_stream, loco_order, seeded_keys
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.errors import DataError
from incdet.tasks import TaskSpec, TaskStream

__all__ = [
    "PROTOCOLS",
    "TaskView",
    "TrainImage",
    "assign_images",
    "dataset_stream",
    "first_task_alone",
    "full_view",
    "hold_out",
    "loco_order",
    "only_classes",
    "task_view",
]


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
    memory_share: float | None = None  # of each batch, from images whose source is "memory"; None = as they fall

    def __len__(self) -> int:
        return len(self.images)


def task_view(
    dataset: DetectionDataset,
    stream: TaskStream,
    task: TaskSpec,
    protocol: str = "class_split",
    difficult: str = "keep",
    seed: int = 0,
) -> TaskView:
    """What ``task`` may see: its images under the protocol, and in them the objects of its new classes only.

    Raises DataError where that leaves no image.
    """
    images = assign_images(dataset, stream, protocol, difficult, seed)[task.index - 1]
    return _view(dataset, stream, task, images, task.new_labels, difficult)


def full_view(
    dataset: DetectionDataset,
    stream: TaskStream,
    task: TaskSpec,
    protocol: str = "class_split",
    difficult: str = "keep",
    seed: int = 0,
) -> TaskView:
    """What joint training at ``task`` may see: the images of all tasks so far, with the objects of all seen classes.

    Under ``class_split`` these are all images with a seen class. Raises DataError where that leaves no image.
    """
    assigned = assign_images(dataset, stream, protocol, difficult, seed)[: task.index]
    images = sorted(set().union(*assigned))
    return _view(dataset, stream, task, images, range(task.num_seen), difficult)


def hold_out(dataset: DetectionDataset, fraction: float, seed: int) -> tuple[DetectionDataset, DetectionDataset]:
    """Two disjoint parts of a dataset, ``(train, held_out)``: for choosing a recipe without touching the test images.

    Stratified by each image's rarest class (ours): every stratum gives ``fraction`` of its images, in seeded order.

    Raises DataError where ``fraction`` is not between 0 and 1 or leaves a part without images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must lie between 0 and 1, but is {fraction}. Set DATASETS.HELD_OUT")
    order = np.lexsort((seeded_keys(dataset, f"hold_out:{seed}"), _rarest_class(dataset)))
    # A walk along the strata that takes an image whenever the number due passes the next integer.
    due = np.floor(np.arange(len(dataset) + 1) * fraction + 0.5)
    held = np.zeros(len(dataset), dtype=bool)
    held[order] = np.diff(due) > 0
    if held.all() or not held.any():
        raise DataError(
            f"holding out {fraction} of the {len(dataset)} images of '{dataset.name}' leaves one part empty. "
            "Set DATASETS.HELD_OUT nearer to 0.5, or use more images"
        )
    return _part(dataset, ~held, "train"), _part(dataset, held, "held_out")


def first_task_alone(
    dataset: DetectionDataset,
    stream: TaskStream,
    protocol: str = "class_split",
    difficult: str = "keep",
    seed: int = 0,
) -> DetectionDataset:
    """The first task as a data set: its images, and no label but those of its classes, which keep the stream's order.

    Taught in tasks of its own it is a proxy of the stream, in which a recipe is chosen before anything else is seen.
    """
    images = assign_images(dataset, stream, protocol, difficult, seed)[0]
    part = DetectionDataset(f"{dataset.name}/task_1", dataset.classes, tuple(dataset.images[index] for index in images))
    return only_classes(part, stream[0].new)


def only_classes(dataset: DetectionDataset, classes: Sequence[str]) -> DetectionDataset:
    """The same images with the objects of some classes alone; a label becomes a position in ``classes``."""
    label_of = {dataset.classes.index(name): label for label, name in enumerate(classes)}
    images = tuple(_with_labels(record, label_of) for record in dataset.images)
    return replace(dataset, classes=tuple(classes), images=images)


def _with_labels(record: ImageRecord, label_of: Mapping[int, int]) -> ImageRecord:
    keep = np.isin(record.labels, list(label_of))
    return replace(
        record,
        boxes=record.boxes[keep],
        labels=np.array([label_of[label] for label in record.labels[keep].tolist()], dtype=np.int64),
        difficult=record.difficult[keep],
        crowd=record.crowd[keep],
        unlabelled=frozenset(label_of[label] for label in record.unlabelled if label in label_of),
    )


def _view(
    dataset: DetectionDataset,
    stream: TaskStream,
    task: TaskSpec,
    images: Sequence[int],
    visible_labels: range,
    difficult: str,
) -> TaskView:
    if not images:
        raise DataError(
            f"task {task.index} has nothing to learn from: no image of '{dataset.name}' holds a usable object of its "
            f"classes {', '.join(task.new)}. Check DATASETS.TRAIN, TASKS.SPLIT and DATASETS.DIFFICULT ('{difficult}')"
        )
    table = ObjectTable.of(dataset, stream.classes)
    visible = (table.labels >= visible_labels.start) & (table.labels < visible_labels.stop)
    if difficult == "drop":
        visible &= table.crowd | ~table.difficult
    image, boxes, labels = table.image[visible], table.boxes[visible], table.labels[visible]
    used = table.usable(difficult)[visible]
    stream_label = {label: stream.classes.index(name) for label, name in enumerate(dataset.classes)}
    views = []
    starts, stops = np.searchsorted(image, images, "left"), np.searchsorted(image, images, "right")
    for index, start, stop in zip(images, starts, stops, strict=True):
        rows = slice(start, stop)
        weights = np.ones(stop - start, dtype=np.float32)
        record = dataset.images[index]
        labelled = frozenset(visible_labels) - {stream_label[label] for label in record.unlabelled}
        views.append(TrainImage(record, boxes[rows], labels[rows], weights, used[rows], used[rows].copy(), labelled))
    return TaskView(task, tuple(views))


def _rarest_class(dataset: DetectionDataset) -> np.ndarray:
    """Per image, the class of its objects that the fewest images hold; the number of classes for an empty image."""
    table = ObjectTable.of(dataset, dataset.classes)
    pairs = np.unique(table.image * len(dataset.classes) + table.labels)
    image, label = np.divmod(pairs, len(dataset.classes))
    images_of_class = np.bincount(label, minlength=len(dataset.classes))
    rarest_first = np.lexsort((images_of_class[label], image))
    holding, first = np.unique(image[rarest_first], return_index=True)
    rarest = np.full(len(dataset), len(dataset.classes))
    rarest[holding] = label[rarest_first][first]
    return rarest


def _part(dataset: DetectionDataset, keep: np.ndarray, part: str) -> DetectionDataset:
    images = tuple(dataset.images[index] for index in np.flatnonzero(keep))
    return DetectionDataset(f"{dataset.name}/{part}", dataset.classes, images)
