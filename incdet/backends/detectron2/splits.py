"""The incremental splits by name, for Detectron2's own trainers and evaluators.

``register_splits`` puts every usual split in Detectron2's catalogs, one name per task::

    register_splits("datasets")
    cfg.DATASETS.TRAIN = ("voc_2007_trainval_10+10_task2",)  # only the new classes' objects
    cfg.DATASETS.TEST = ("voc_2007_test_10+10_task2",)  # all images, the objects of every class seen so far

The metadata of a name:

- ``thing_classes``: the classes seen so far, in the order they are taught.
- ``visible_labels``: the range of labels that the dicts hold; ``TaskMapper`` hides any other.
- ``evaluator_type``: ``pascal_voc`` for VOC 2007 and 2012, with ``dirname``, ``split`` and ``year``; else ``coco``. For
  the latter Detectron2 makes a COCO file of the dicts, in which areas are those of boxes and difficult objects count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from incdet.backends.detectron2.data import detection_dicts
from incdet.data.catalog import known_names, load_dataset
from incdet.data.protocols import DIFFICULT_POLICIES, PROTOCOLS, check_choice, dataset_stream
from incdet.data.shapes import SHAPE_CLASSES
from incdet.data.views import TaskView, TrainImage, task_view
from incdet.data.voc import VOC_CLASSES
from incdet.errors import SplitError
from incdet.tasks import TaskSpec, TaskStream, build_stream

# Splits and class order of each family of known names. VOC's and shapes' lists are alphabetical; COCO is taught by
# category id, as configs/_base_/coco.yaml does.
_TWENTY = ("19+1", "15+5", "10+10", "10+5+5", "5+5+5+5", "15+1x5")
_FAMILIES = {
    "voc": (_TWENTY, "alphabetical"),
    "shapes": (_TWENTY, "alphabetical"),
    "coco": (("40+40", "70+10"), "id"),
}


def register_splits(root: str | Path = "datasets") -> list[str]:
    """Registers the usual splits of every known data set as ``<dataset>_<split>_task<t>`` and returns these names.

    Nothing is read before ``DatasetCatalog.get``. A second call with the same root changes nothing; with another root
    it registers again.
    """
    names = []
    for dataset in known_names():
        splits, order = _FAMILIES[dataset.split("_")[0]]
        test = dataset.endswith(("_test", "_val"))
        for split in splits:
            names += register_split(dataset, dataset, split, root, order, test=test)
    return names


def register_split(
    name: str,
    dataset: str,
    split: str,
    root: str | Path = "datasets",
    order: str = "alphabetical",
    protocol: str = "class_split",
    difficult: str = "keep",
    seed: int = 0,
    *,
    classes: Sequence[str] = (),
    test: bool = False,
) -> list[str]:
    """Registers every task of a split as ``<name>_<split>_task<t>`` and returns these names.

    The data are read here only where the classes, or the order of ``loco``, cannot be known otherwise.

    Args:
        name: what the names begin with.
        dataset: any name that ``load_dataset`` reads.
        split: e.g. ``10+5+5``.
        root: the folder that holds the data sets known by name.
        order: see ``order_classes``; instead of ``listed`` give the list as ``classes``, with the order ``id``.
        protocol: which images a task trains on.
        difficult: what becomes of difficult objects in training.
        seed: of the protocol's random choices.
        classes: the data's classes where they are not a known set's. A test set takes those of the training set.
        test: False registers what each task may see; True registers all images, with the objects of every class seen
            up to that task, on which incdet evaluates.

    Raises:
        SplitError: the split, the order, the protocol or the policy is unknown or does not fit.
        DataError: data that must be read here cannot be.
    """
    check_choice("protocol", protocol, PROTOCOLS, "the argument protocol")
    check_choice("difficult policy", difficult, DIFFICULT_POLICIES, "the argument difficult")
    stream = _stream(dataset, split, root, order, protocol, classes, test)
    names = []
    for task in stream:
        if test:
            load, visible = partial(_test_dicts, dataset, root, stream, task), range(task.num_seen)
        else:
            load = partial(_training_dicts, dataset, root, stream, task, protocol, difficult, seed)
            visible = task.new_labels
        names.append(f"{name}_{split}_task{task.index}")
        DatasetCatalog[names[-1]] = load  # not ``register``, which refuses a name that it has
        evaluation = _evaluation_metadata(dataset, root)
        _set_metadata(names[-1], thing_classes=list(task.seen), visible_labels=visible, **evaluation)
    return names


def _stream(
    dataset: str, split: str, root: str | Path, order: str, protocol: str, classes: Sequence[str], test: bool
) -> TaskStream:
    """The split's stream; reads the data only where nothing else can tell it."""
    known = tuple(classes) or _known_classes(dataset)
    if known and protocol != "loco":
        return build_stream(split, known, order)
    if test and protocol == "loco":
        raise SplitError(
            f"{dataset}: loco orders the classes by what occurs together in the training images, which a test set "
            "cannot tell. Give classes=thing_classes of the training set's last task, order='id' and the protocol "
            "'class_split', which is the same for a test set"
        )
    return dataset_stream(load_dataset(dataset, root, known), split, order, protocol=protocol)


def _known_classes(dataset: str) -> tuple[str, ...] | None:
    """The classes of a known data set, without reading it. COCO's are those that Detectron2 itself registers."""
    if dataset not in known_names():
        return None
    lists = {
        "voc": VOC_CLASSES,
        "shapes": SHAPE_CLASSES,
        "coco": MetadataCatalog.get("coco_2017_train").thing_classes,
    }
    return tuple(lists[dataset.split("_")[0]])


def _training_dicts(
    dataset: str, root: str | Path, stream: TaskStream, task: TaskSpec, protocol: str, difficult: str, seed: int
) -> list[dict[str, Any]]:
    loaded = load_dataset(dataset, root, stream.classes)
    return detection_dicts(task_view(loaded, stream, task, protocol, difficult, seed))


def _test_dicts(dataset: str, root: str | Path, stream: TaskStream, task: TaskSpec) -> list[dict[str, Any]]:
    """All images of the set, with the objects of the seen classes."""
    images = []
    for record in load_dataset(dataset, root, stream.classes).images:  # labels are the stream's
        seen = record.labels < task.num_seen
        used, weights = ~record.crowd[seen], np.ones(seen.sum(), np.float32)
        labelled = frozenset(range(task.num_seen)) - record.unlabelled
        images.append(TrainImage(record, record.boxes[seen], record.labels[seen], weights, used, used, labelled))
    return detection_dicts(TaskView(task, tuple(images)))


def _set_metadata(name: str, **metadata: Any) -> None:
    """Metadata cannot be overwritten in Detectron2: other values need a new entry, equal ones keep what users added."""
    present = MetadataCatalog.get(name).as_dict()
    if not metadata.items() <= present.items():
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(**metadata)


def _evaluation_metadata(dataset: str, root: str | Path) -> dict[str, Any]:
    """``pascal_voc`` for VOC's own files alone: its evaluator wants whole pixels and fields that others leave out."""
    if not (dataset in known_names() and dataset.startswith("voc_")):
        return {"evaluator_type": "coco"}
    _, year, part = dataset.split("_")
    return {"evaluator_type": "pascal_voc", "dirname": str(Path(root, f"VOC{year}")), "split": part, "year": int(year)}
