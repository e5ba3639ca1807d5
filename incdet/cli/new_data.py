"""The data of ``incdet add-classes``: a folder of new labels as training and test sets of old and new classes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from incdet.data.catalog import known_names, load_dataset
from incdet.data.check import find_defects
from incdet.data.coco import to_coco
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.data.views import hold_out
from incdet.data.voc import EVERY_ANNOTATION
from incdet.errors import ConfigError, DataError
from incdet.files import read_json, write_atomic
from incdet.structures import Detections

# All ours.
HELD_OUT = 0.2  # of the folder's images are kept from training, to measure the new classes with
HELD_OUT_SEED = 0
MIN_IMAGES = 10  # with new labels; fewer leave next to nothing to measure with
STAND_IN_SCORE = 0.7  # a detection of the old model from here on stands in for a label
STAND_IN_IOU = 0.5  # it gives way to a labelled object that it overlaps more than this: the same object, misnamed
_SHOWN_DEFECTS = 20


@dataclass(frozen=True)
class NewData:
    """A folder of new labels, split; labels are those of ``classes``, the old ones first."""

    classes: tuple[str, ...]
    num_old: int
    train: DetectionDataset
    test: DetectionDataset


def data_name(text: str) -> str:
    """The catalog's name of what a user gave: a name that it knows, or a folder in VOC or COCO layout.

    Raises:
        DataError: it is neither, or it holds several sets, so that the user must choose.
    """
    if text.startswith(("voc:", "coco:")) or set(text.split(",")) <= set(known_names()):
        return text
    folder = Path(text).resolve()
    _refuse_comma(str(folder))
    if not folder.is_dir():
        raise DataError(f"{text} is neither a folder nor a known data set. Known: {', '.join(known_names())}.")
    if (folder / "Annotations").is_dir():
        return f"voc:{folder}:{_voc_split(folder)}"
    return _coco_name(folder)


def load_new_data(name: str, root: str, chosen: Sequence[str], old: Sequence[str]) -> NewData:
    """Check and read the labels of new classes, and keep a part of the images from training.

    Args:
        name: of the data set, as the catalog knows it.
        root: DATASETS.ROOT.
        chosen: the classes to learn; none takes all that are labelled.
        old: what the model knows already.

    Raises:
        DataError: a file is damaged (all are named), nothing new is labelled, a class is known already or absent, or
            the images are too few.
    """
    defects = find_defects(name, root)
    if defects:
        lines = "\n".join(f"  {defect}" for defect in defects[:_SHOWN_DEFECTS])
        raise DataError(f"{name} has {len(defects)} defects; mend them first:\n{lines}")
    data = load_dataset(name, root)
    new = _new_classes(data, chosen, old)
    classes = (*old, *new)
    data = relabel(data, classes, keep=new)
    labelled = sum(bool((~image.crowd).any()) for image in data.images)
    if labelled < MIN_IMAGES:
        raise DataError(
            f"{name}: only {labelled} images are labelled with {', '.join(new)}; at least {MIN_IMAGES} are needed, "
            "some to learn from and some to measure with. Label more images."
        )
    train, test = hold_out(data, HELD_OUT, HELD_OUT_SEED)
    taught = {classes[label] for image in train.images for label in image.labels[~image.crowd]}
    unseen = [one for one in new if one not in taught]
    if unseen:
        raise DataError(f"{name}: too few images hold {', '.join(unseen)}. Label more, or leave it out by --classes.")
    return NewData(classes, len(old), train, test)


def load_old_test(name: str, root: str, new: NewData) -> DetectionDataset:
    """A data set labelled with old classes, under the labels of ``new``; it judges the old classes and no other.

    Raises:
        DataError: it cannot be read, or has none of the old classes.
    """
    data = load_dataset(name, root)
    old = new.classes[: new.num_old]
    shared = [one for one in data.classes if one in old]
    if not shared:
        raise DataError(
            f"--old-test: {name} has none of the old classes {', '.join(old)}; it has {', '.join(data.classes)}."
        )
    data = relabel(data, new.classes, shared)
    # The folder of new images may use the same ids.
    return replace(data, images=tuple(replace(image, image_id=f"old_test/{image.image_id}") for image in data.images))


def relabel(data: DetectionDataset, classes: Sequence[str], keep: Sequence[str]) -> DetectionDataset:
    """The objects of ``keep`` under the labels of ``classes``; all other classes are unlabelled in every image."""
    label = np.array([classes.index(name) if name in keep else -1 for name in data.classes], dtype=np.int64)
    unlabelled = frozenset(index for index, name in enumerate(classes) if name not in keep)
    return DetectionDataset(
        data.name, tuple(classes), tuple(_relabelled(image, label, unlabelled) for image in data.images)
    )


def with_stand_ins(data: DetectionDataset, found: Sequence[Detections]) -> DetectionDataset:
    """The data set with the old model's confident detections in place of the labels that nobody gave.

    Args:
        data: its images are unlabelled with the old classes.
        found: what the old model detected in each of them.
    """
    return replace(data, images=tuple(_stood_in(image, one) for image, one in zip(data.images, found, strict=True)))


def save_set(path: Path, data: DetectionDataset) -> None:
    """Write a COCO file, or find that the same one is there.

    Raises:
        ConfigError: another one is there.
    """
    folder = _image_folder(data)
    absolute = replace(data, images=tuple(replace(image, path=image.path.absolute()) for image in data.images))
    write_once(path, json.dumps(to_coco(absolute, folder)).encode())


def set_name(path: Path, data: DetectionDataset) -> str:
    """The catalog's name of a set that ``save_set`` wrote."""
    name = f"coco:{path.resolve()}:{_image_folder(data)}"
    _refuse_comma(name)
    return name


def write_once(path: Path, content: bytes) -> None:
    """Write a file that a resumed command must find unchanged.

    Raises:
        ConfigError: the file is there with another content.
    """
    if not path.exists():
        write_atomic(path, content)
    elif path.read_bytes() != content:
        raise ConfigError(
            f"{path} was written from another model or other data than given now. Resume with the same --model, "
            "--data, --classes and --old-test, or choose another --out."
        )


def _refuse_comma(path: str) -> None:
    if "," in path:
        raise DataError(f"{path}: a comma joins the names of data sets, so no path may hold one. Rename the folder.")


def _image_folder(data: DetectionDataset) -> str:
    return os.path.commonpath([image.path.absolute().parent for image in data.images])


def _voc_split(folder: Path) -> str:
    """What a folder in VOC layout offers for training; without lists of images, all of its annotations."""
    splits = sorted(file.stem for file in (folder / "ImageSets" / "Main").glob("*.txt"))
    if not splits:
        return EVERY_ANNOTATION
    split = next((name for name in ("trainval", "train") if name in splits), None)
    if split is None:
        raise DataError(
            f"{folder} has the splits {', '.join(splits)} and neither trainval nor train. Choose one: "
            f"--data voc:{folder}:{splits[0]}."
        )
    return split


def _coco_name(folder: Path) -> str:
    """The one annotation file of a folder in COCO layout, and the folder in it that the file names start from."""
    files = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    if len(files) != 1:
        found = f"{len(files)} annotation files: {', '.join(map(str, files))}" if files else "no annotation file"
        raise DataError(
            f"{folder}: expected JPEGImages and Annotations (VOC), or one COCO file and its images; there is {found}. "
            "Name them: --data coco:<annotations.json>:<image folder>."
        )
    content = read_json(files[0], "COCO annotations")
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0].get("file_name") if isinstance(images, list) and images and isinstance(images[0], dict) else None
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    place = next((path for path in candidates if first and (path / str(first)).is_file()), None)
    if place is None:
        raise DataError(
            f"{files[0]}: its first image ({first!r}) is in none of {', '.join(map(str, candidates))}. Name the folder "
            f"of the images: --data coco:{files[0]}:<image folder>."
        )
    return f"coco:{files[0]}:{place}"


def _new_classes(data: DetectionDataset, chosen: Sequence[str], old: Sequence[str]) -> tuple[str, ...]:
    labels = {int(label) for image in data.images for label in image.labels[~image.crowd]}
    present = [name for label, name in enumerate(data.classes) if label in labels]
    if not present:
        raise DataError(f"{data.name} labels no object. Label the objects of the new classes first.")
    absent = [name for name in chosen if name not in present]
    if absent:
        raise DataError(f"--classes: {data.name} labels no {', '.join(absent)}. It labels {', '.join(present)}.")
    wanted = tuple(dict.fromkeys(chosen)) or tuple(present)
    known = [name for name in wanted if name in old]
    if known:
        others = [name for name in present if name not in old]
        remedy = f"Choose the new ones: --classes {' '.join(others)}. If" if others else "If"
        raise DataError(
            f"{data.name}: the model knows {', '.join(known)} already. {remedy} it means another kind of object here, "
            "rename the class in the annotations."
        )
    return wanted


def _relabelled(image: ImageRecord, label: np.ndarray, unlabelled: frozenset[int]) -> ImageRecord:
    labels = label[image.labels]
    keep = labels >= 0
    return replace(
        image,
        boxes=image.boxes[keep],
        labels=labels[keep],
        difficult=image.difficult[keep],
        crowd=image.crowd[keep],
        unlabelled=unlabelled,
    )


def _stood_in(image: ImageRecord, found: Detections) -> ImageRecord:
    sure = found.above(STAND_IN_SCORE)
    boxes, labels = sure.boxes.numpy(), sure.labels.numpy()
    if len(boxes) and len(image.boxes):
        overlap = box_iou(sure.boxes, torch.from_numpy(image.boxes)).amax(dim=1).numpy()
        boxes, labels = boxes[overlap <= STAND_IN_IOU], labels[overlap <= STAND_IN_IOU]
    none = np.zeros(len(boxes), dtype=bool)
    return replace(
        image,
        boxes=np.concatenate([image.boxes, boxes]),
        labels=np.concatenate([image.labels, labels]),
        difficult=np.concatenate([image.difficult, none]),
        crowd=np.concatenate([image.crowd, none]),
        unlabelled=frozenset(),
    )
