"""Data sets by name.

======================================  ==============================================================
``voc_2007_trainval``, ...              ``<root>/VOC2007``, ``<root>/VOC2012`` in VOC layout
``coco_2017_train``, ``coco_2017_val``  ``<root>/coco`` in COCO layout
``shapes_train``, ``shapes_test``       ``<root>/shapes``, drawn by ``datasets/make_shapes.py``
``digits_train``, ``digits_test``       ``<root>/digits``, written by ``datasets/make_digits.py``: for classification
``permuted_digits_train``, ``..._test`` ``<root>/permuted_digits``, written by ``make_digits.py --permutations 10``
``cifar100_train``, ``cifar100_test``   ``<root>/cifar100``, written by ``prepare_cifar.py``: for classification
``voc:<folder>:<split>``                any folder in VOC layout; the split ``*`` is every annotation in it
``coco:<annotations.json>:<images>``    any COCO file and its folder of images
``folders:<folder>:<split>``            ``<folder>/<split>/<class>/<image>``: for classification
======================================  ==============================================================

Names joined by a comma are read as one data set.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from incdet.data.coco import load_coco
from incdet.data.defects import Defect, Report, refuse
from incdet.data.folders import load_folders
from incdet.data.records import DetectionDataset
from incdet.data.shapes import SHAPE_CLASSES
from incdet.data.voc import VOC_CLASSES, load_voc
from incdet.errors import DataError

_VOC = {
    f"voc_{year}_{split}": (f"VOC{year}", split)
    for year, splits in (("2007", ("train", "val", "trainval", "test")), ("2012", ("train", "val", "trainval")))
    for split in splits
}
_COCO = {f"coco_2017_{split}": f"{split}2017" for split in ("train", "val")}
_SHAPES = {f"shapes_{split}": split for split in ("train", "test")}
_DIGITS = {f"{name}_{split}": (name, split) for name in ("digits", "permuted_digits") for split in ("train", "test")}
_CIFAR = {f"cifar100_{split}": split for split in ("train", "test")}
_FREE_FORMS = ("voc:<folder>:<split>", "coco:<annotations.json>:<image folder>", "folders:<folder>:<split>")


def known_names() -> tuple[str, ...]:
    """The sets for detection that need no path."""
    return (*_SHAPES, *_VOC, *_COCO)


def load_dataset(
    name: str,
    root: str | Path = "datasets",
    classes: Sequence[str] | None = None,
    report: Report = refuse,
) -> DetectionDataset:
    """Reads the data set ``name``, or several joined by commas.

    Args:
        name: see the module. Paths in the free forms are relative to the working directory, not to ``root``.
        root: the folder that holds the data sets known by name.
        classes: see ``load_voc`` and ``load_coco``; None or none takes the set's own list.
        report: what to do with a defect; the default raises.

    Raises:
        DataError: the name is unknown, the data are not there, a file is damaged, or joined sets disagree.
    """
    names = [part.strip() for part in name.split(",") if part.strip()]
    if not names:
        raise DataError(f"Expected the name of a data set, got {name!r}. Known: {_describe_names()}.")
    parts = [_load_one(part, Path(root), classes, report) for part in names]
    return parts[0] if len(parts) == 1 else _join(",".join(names), parts, report)


def _load_one(name: str, root: Path, classes: Sequence[str] | None, report: Report) -> DetectionDataset:
    if name in _VOC:
        folder, split = root / _VOC[name][0], _VOC[name][1]
        _require_folder(folder, name, "Unpack it by `python datasets/prepare_voc.py`, see datasets/README.md")
        return load_voc(folder, split, classes or VOC_CLASSES, name, report)
    if name in _SHAPES:
        folder = root / "shapes"
        _require_folder(folder, name, f"Draw it by `python datasets/make_shapes.py --output {folder}`")
        return load_voc(folder, _SHAPES[name], classes or SHAPE_CLASSES, name, report)
    if name in _DIGITS:
        folder, split = root / _DIGITS[name][0], _DIGITS[name][1]
        copies = " --permutations 10" if name.startswith("permuted") else ""
        _require_folder(folder, name, f"Write it by `python datasets/make_digits.py{copies} --output {folder}`")
        return load_folders(folder, split, classes, name, report)
    if name in _CIFAR:
        folder = root / "cifar100"
        remedy = f"Write it by `python datasets/prepare_cifar.py cifar-100-binary.tar.gz --output {folder}`"
        _require_folder(folder, name, remedy)
        return load_folders(folder, _CIFAR[name], classes, name, report)
    if name in _COCO:
        folder = root / "coco"
        _require_folder(folder, name, "Unpack it by `python datasets/prepare_coco.py`, see datasets/README.md")
        annotations = folder / "annotations" / f"instances_{_COCO[name]}.json"
        return load_coco(annotations, folder / _COCO[name], classes, name, report)
    if match := re.fullmatch(r"voc:(.+):([^:]+)", name):
        _require_folder(Path(match[1]), name, "Correct the path; paths are relative to the working directory")
        return load_voc(match[1], match[2], classes, name, report)
    if match := re.fullmatch(r"coco:(.+\.json):(.+)", name):
        return load_coco(match[1], match[2], classes, name, report)
    if match := re.fullmatch(r"folders:(.+):([^:]+)", name):
        _require_folder(Path(match[1]), name, "Correct the path; paths are relative to the working directory")
        return load_folders(match[1], match[2], classes, name, report)
    raise DataError(_unknown(name))


def _require_folder(folder: Path, name: str, remedy: str) -> None:
    if not folder.is_dir():
        raise DataError(f"Data set {name!r}: the folder {folder} does not exist. {remedy}.")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, (*known_names(), *_DIGITS, *_CIFAR), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown data set {name!r}.{hint} Known: {_describe_names()}."


def _describe_names() -> str:
    return ", ".join((*known_names(), *_DIGITS, *_CIFAR, *_FREE_FORMS))


def _join(name: str, parts: list[DetectionDataset], report: Report) -> DetectionDataset:
    """One data set of several that agree on the classes and share no image id."""
    classes = parts[0].classes
    for part in parts[1:]:
        if part.classes != classes:
            raise DataError(
                f"Data sets {parts[0].name!r} and {part.name!r} cannot be joined: their classes are "
                f"{', '.join(classes)} and {', '.join(part.classes)}. Give one list of classes for both."
            )
    images = tuple(image for part in parts for image in part.images)
    for image_id, count in Counter(image.image_id for image in images).items():
        if count > 1:
            remedy = "Join only sets that share no image, or rename the files of one of them"
            report(Defect(name, image_id, f"the image id occurs {count} times in the joined sets", remedy))
    return DetectionDataset(name, classes, images)
