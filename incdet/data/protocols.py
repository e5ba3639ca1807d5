"""Which images each task trains on.

Four protocols are in use, and figures measured under different ones cannot be compared:

- ``class_split``: an image is in every task that teaches one of its classes, so images repeat (Shmelkov et al., 2017,
  and most later work).
- ``image_split``: each image is in exactly one of those tasks (CL-DETR, Liu et al., 2023).
- ``loco``: each image is in exactly one task, and classes that often occur together are taught together, so that few
  objects of other tasks are left unlabelled.
- ``latest_class``: each image is in the task of the latest of its classes, so that no image shows what is taught later
  (PPI; segmentation calls it *disjoint*, Cermelli et al., 2020).

Everything here is a function of the data, the split and a seed: random choices are hashes of (seed, image id), equal
on every machine and for every version of a random generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from incdet.data.records import DetectionDataset
from incdet.errors import DataError, SplitError
from incdet.tasks import TaskStream, build_stream

PROTOCOLS = ("class_split", "image_split", "loco", "latest_class")
DIFFICULT_POLICIES = ("keep", "drop", "ignore")


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """All objects of a dataset, one per row and sorted by image: questions about them become array operations."""

    images: int
    image: np.ndarray  # (m,) int64, index into DetectionDataset.images
    boxes: np.ndarray  # (m, 4) float32, original pixels
    labels: np.ndarray  # (m,) int64, stream order
    difficult: np.ndarray  # (m,) bool
    crowd: np.ndarray  # (m,) bool

    @classmethod
    def of(cls, dataset: DetectionDataset, classes: Sequence[str]) -> ObjectTable:
        """The objects of ``dataset`` with labels in the order of ``classes``.

        Raises DataError for a dataset without images, SplitError where its classes are not those of the stream.
        """
        if not dataset.images:
            raise DataError(f"the dataset '{dataset.name}' holds no image. Check its list of images and DATASETS")
        if set(dataset.classes) != set(classes):
            differing = ", ".join(sorted(set(dataset.classes) ^ set(classes)))
            raise SplitError(
                f"the dataset '{dataset.name}' and the task stream must have the same classes; only one has: "
                f"{differing}. Load the dataset with the stream's classes (DATASETS.CLASSES)"
            )
        stream_label = np.array([classes.index(name) for name in dataset.classes], dtype=np.int64)
        records = dataset.images
        return cls(
            images=len(records),
            image=np.repeat(np.arange(len(records)), [len(record.labels) for record in records]),
            boxes=np.concatenate([record.boxes for record in records]),
            labels=stream_label[np.concatenate([record.labels for record in records])],
            difficult=np.concatenate([record.difficult for record in records]),
            crowd=np.concatenate([record.crowd for record in records]),
        )

    def usable(self, difficult: str) -> np.ndarray:
        """Mask (m,) of the objects that a task may learn from under the ``difficult`` policy."""
        check_choice("difficult policy", difficult, DIFFICULT_POLICIES, "DATASETS.DIFFICULT (or --difficult)")
        return ~self.crowd if difficult == "keep" else ~(self.crowd | self.difficult)


def assign_images(
    dataset: DetectionDataset,
    stream: TaskStream,
    protocol: str = "class_split",
    difficult: str = "keep",
    seed: int = 0,
) -> list[list[int]]:
    """Indices into ``dataset.images`` for each task, ascending.

    Only usable objects count: an image whose objects of a class are all crowd, or all difficult under ``drop`` or
    ``ignore``, does not hold that class. An image without a usable object is in no task.

    ``image_split`` (ours, where the publications leave the rule open): images that only one task could take go there;
    the others follow, fewest choices first and then in seeded order, each to the task that is furthest below its
    share, where a task's share is its number of classes. ``loco`` gives an image to the task with most of its
    objects, the earlier one at a tie; ``latest_class`` to the last task with any.
    """
    check_choice("protocol", protocol, PROTOCOLS, "TASKS.PROTOCOL (or --protocol)")
    table = ObjectTable.of(dataset, stream.classes)
    task_sizes = np.array([task.num_new for task in stream])
    task_of_label = np.repeat(np.arange(len(stream)), task_sizes)
    usable = table.usable(difficult)
    cells = table.image[usable] * len(stream) + task_of_label[table.labels[usable]]
    objects = np.bincount(cells, minlength=table.images * len(stream)).reshape(table.images, len(stream))
    if protocol == "class_split":
        return [np.flatnonzero(column).tolist() for column in objects.T]
    if protocol == "image_split":
        owner = _share_out(objects > 0, task_sizes, seeded_keys(dataset, f"image_split:{seed}"))
    elif protocol == "loco":
        owner = np.where(objects.any(axis=1), objects.argmax(axis=1), -1)
    else:
        owner = np.where(objects > 0, np.arange(len(stream)), -1).max(axis=1)
    return [np.flatnonzero(owner == task).tolist() for task in range(len(stream))]


def dataset_stream(
    dataset: DetectionDataset,
    split: str,
    order: str = "alphabetical",
    listed: Sequence[str] = (),
    protocol: str = "class_split",
) -> TaskStream:
    """The stream that teaches the classes of ``dataset`` under ``protocol``.

    ``loco`` regroups the ordered classes (``loco_order``) and says so in the stream's ``order``.
    """
    check_choice("protocol", protocol, PROTOCOLS, "TASKS.PROTOCOL (or --protocol)")
    stream = build_stream(split, dataset.classes, order, listed)
    if protocol != "loco":
        return stream
    grouped = loco_order(dataset, [task.num_new for task in stream], stream.classes)
    return replace(build_stream(split, grouped, "id"), order=f"loco from {order}")


def loco_order(
    dataset: DetectionDataset, sizes: Sequence[int], classes: Sequence[str] | None = None
) -> tuple[str, ...]:
    """A class order whose groups of ``sizes`` hold classes that occur in the same images.

    Greedy agglomeration (ours): the largest group is filled first. It starts from the class that shares most images
    with the classes still free, and takes again and again the free class that shares most images with the group.
    ``classes`` (default: the dataset's order) breaks ties and is the order inside a group.

    Raises SplitError where the sizes do not sum to the number of classes.
    """
    names = tuple(classes or dataset.classes)
    if sum(sizes) != len(names):
        raise SplitError(
            f"group sizes {list(sizes)} must sum to the {len(names)} classes. Mend TASKS.SPLIT (or --split)"
        )
    shared = _shared_images(ObjectTable.of(dataset, names), len(names))
    free = list(range(len(names)))
    groups: dict[int, list[int]] = {}
    for task in sorted(range(len(sizes)), key=lambda task: -sizes[task]):
        group: list[int] = []
        while len(group) < sizes[task]:
            pull = shared[np.ix_(free, group or free)].sum(axis=1)
            group.append(free.pop(int(pull.argmax())))
        groups[task] = sorted(group)
    return tuple(names[label] for task in range(len(sizes)) for label in groups[task])


def check_choice(what: str, value: str, known: Sequence[str], where: str) -> None:
    """Raise SplitError unless ``value`` is one of ``known``."""
    if value not in known:
        raise SplitError(f"unknown {what} '{value}': expected one of {', '.join(known)}. Set {where}")


def seeded_keys(dataset: DetectionDataset, purpose: str) -> np.ndarray:
    """One uint64 per image that orders the images at random, by ``purpose`` (which names the seed) and image id."""
    digests = (hashlib.sha256(f"{purpose}:{record.image_id}".encode()).digest()[:8] for record in dataset.images)
    return np.frombuffer(b"".join(digests), dtype=">u8")


def _share_out(present: np.ndarray, shares: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The task (n,) of each image, -1 for none; ``present`` (n, tasks) says which tasks could take it."""
    choices = present.sum(axis=1)
    owner = np.where(choices == 1, present.argmax(axis=1), -1)
    taken = np.bincount(owner[choices == 1], minlength=len(shares))
    for image in np.lexsort((keys, choices)):
        if choices[image] > 1:
            tasks = np.flatnonzero(present[image])
            owner[image] = tasks[(taken[tasks] / shares[tasks]).argmin()]
            taken[owner[image]] += 1
    return owner


def _shared_images(table: ObjectTable, classes: int) -> np.ndarray:
    """Matrix (classes, classes): how many images hold both, crowd objects apart; 0 on the diagonal."""
    present = np.zeros((table.images, classes), dtype=np.float32)
    present[table.image[~table.crowd], table.labels[~table.crowd]] = 1
    shared = present.T @ present
    np.fill_diagonal(shared, 0)
    return shared
