"""The COCO layout: one JSON file for all images, boxes as ``x, y, width, height`` in continuous pixels from 0.

Category ids of a file are translated to labels ``0 .. K - 1``; ``to_coco`` numbers them ``label + 1``.

One key is ours: an image may list ``unlabelled_category_ids``, the categories whose objects nobody marked in it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from incdet.data.defects import Defect, Report, clip_box, refuse
from incdet.data.records import DetectionDataset, ImageRecord

# Two objects of COCO train2017 are published with a height of 0 (cocodataset/cocoapi, issue 355), one in each of these
# images. They are left out; any other box without an area is a defect.
_PUBLISHED_EMPTY = frozenset({"200365", "550395"})
_QUIET_OBJECTS = 50_000  # more objects than this take long enough for a progress bar


def load_coco(
    annotation_file: str | Path,
    image_folder: str | Path,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    report: Report = refuse,
) -> DetectionDataset:
    """Reads a COCO detection file (Lin et al., ECCV 2014).

    ``iscrowd`` becomes ``crowd``; the keys ``difficult`` and ``ignore``, which sets converted from VOC carry, become
    ``difficult``.

    Args:
        annotation_file: the ``instances_*.json``.
        image_folder: the folder that every ``file_name`` starts from.
        classes: names in the order labels shall count them; None or none takes the file's, by category id.
        name: the data set's name; None takes the file's.
        report: what to do with a defect; the default raises.

    Raises:
        DataError: a file is missing, damaged, or states what cannot be.
    """
    file = Path(annotation_file)
    reader = _Reader(file, Path(image_folder), report)
    content = _read_json(file, report)
    categories = reader.read_categories(content)
    names = tuple(classes) if classes else tuple(categories[key] for key in sorted(categories))
    labels = {name: label for label, name in enumerate(names)}
    reader.read_images(content)
    reader.read_unlabelled(categories, labels)
    reader.read_objects(content, categories, labels)
    return DetectionDataset(name or file.stem, names, reader.records())


def to_coco(dataset: DetectionDataset, image_folder: str | Path | None = None) -> dict[str, Any]:
    """The data set as COCO ground truth.

    Category ids are ``label + 1``, annotation ids count from 1 and image ids stay strings. ``area`` is the box's.
    ``difficult`` is kept as a key of its own; making it ``ignore`` or not is the evaluation's decision.

    Args:
        dataset: what to write.
        image_folder: every ``file_name`` starts from it; None writes the bare names of the files.
    """
    images = [_image_entry(image, image_folder) for image in dataset.images]
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        flags = zip(image.difficult, image.crowd, strict=True)
        for box, label, (difficult, crowd) in zip(image.boxes.tolist(), image.labels, flags, strict=True):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(crowd),
                    "difficult": int(difficult),
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _image_entry(image: ImageRecord, folder: str | Path | None) -> dict[str, Any]:
    file_name = image.path.name if folder is None else image.path.relative_to(folder).as_posix()
    entry = {"id": image.image_id, "file_name": file_name, "width": image.width, "height": image.height}
    if image.unlabelled:
        entry["unlabelled_category_ids"] = [label + 1 for label in sorted(image.unlabelled)]
    return entry


@dataclass(frozen=True)
class _Object:
    box: tuple[float, float, float, float]
    label: int
    difficult: bool
    crowd: bool


@dataclass
class _Reader:
    """One file's content as it is checked: images first, then the objects that name them."""

    file: Path
    folder: Path
    report: Report
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, list[_Object]] = field(default_factory=lambda: defaultdict(list))
    unlabelled: dict[str, frozenset[int]] = field(default_factory=dict)  # of the images that say so

    def refuse(self, place: str, problem: str, remedy: str) -> None:
        self.report(Defect(str(self.file), place, problem, remedy))

    def read_categories(self, content: dict[str, Any]) -> dict[int, str]:
        """Category id -> name."""
        categories: dict[int, str] = {}
        for place, entry in self._entries(content, "categories", {"id": int, "name": str}):
            if entry["id"] in categories:
                self.refuse(f"{place}/id", f"the category id {entry['id']} occurs twice", "Give each category its own")
            elif entry["name"] in categories.values():
                self.refuse(f"{place}/name", f"the name {entry['name']!r} occurs twice", "Merge the two categories")
            else:
                categories[entry["id"]] = entry["name"]
        return categories

    def read_images(self, content: dict[str, Any]) -> None:
        present = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}
        keys = {"id": (int, str), "file_name": str, "width": int, "height": int}
        for place, entry in self._entries(content, "images", keys):
            image_id = str(entry["id"])
            if image_id in self.images:
                self.refuse(f"{place}/id", f"the image id {image_id} occurs twice", "Give each image its own")
                continue
            if entry["width"] <= 0 or entry["height"] <= 0:
                problem = f"the image is {entry['width']} x {entry['height']} pixels"
                self.refuse(place, problem, "Write the image's true width and height")
                continue
            self.images[image_id] = entry
            if entry["file_name"] not in present:
                remedy = "Add the image, or remove its entry from the annotation file"
                self.report(Defect(str(self.folder / entry["file_name"]), "", "the image is missing", remedy))
        if not self.images:
            self.refuse("images", "the file lists no image that can be used", "List at least one image")

    def read_unlabelled(self, categories: dict[int, str], labels: dict[str, int]) -> None:
        for image_id, entry in self.images.items():
            ids = entry.get("unlabelled_category_ids", [])
            if not isinstance(ids, list) or not all(isinstance(key, int) and key in categories for key in ids):
                remedy = "List ids of the file's categories, or remove the key"
                self.refuse(f"image {image_id}/unlabelled_category_ids", f"{ids!r} are not ids of categories", remedy)
            elif ids:
                self.unlabelled[image_id] = frozenset(
                    labels[categories[key]] for key in ids if categories[key] in labels
                )

    def read_objects(self, content: dict[str, Any], categories: dict[int, str], labels: dict[str, int]) -> None:
        seen: set[int] = set()
        keys = {"id": int, "image_id": (int, str), "category_id": int, "bbox": list}
        entries = self._entries(content, "annotations", keys)
        for place, entry in tqdm(entries, desc=f"reading {self.file.name}", disable=len(entries) <= _QUIET_OBJECTS):
            image_id, category = str(entry["image_id"]), categories.get(entry["category_id"])
            if entry["id"] in seen:
                self.refuse(f"{place}/id", f"the annotation id {entry['id']} occurs twice", "Give each its own")
            elif image_id not in self.images:
                self.refuse(f"{place}/image_id", f"no image has the id {image_id}", "Correct it, or add the image")
            elif category is None:
                known = ", ".join(map(str, sorted(categories)))
                problem = f"no category has the id {entry['category_id']}; there are {known or 'none'}"
                self.refuse(f"{place}/category_id", problem, "Correct it, or add the category")
            elif category not in labels:
                problem = f"unknown class {category!r}; the classes are {', '.join(labels)}"
                self.refuse(f"{place}/category_id", problem, "Add it to the classes of the data set")
            elif labels[category] in self.unlabelled.get(image_id, ()):
                problem = f"image {image_id} says that no {category!r} is labelled in it, but here is one"
                self.refuse(place, problem, "Take the category out of the image's unlabelled_category_ids")
            else:
                self._read_object(place, entry, image_id, labels[category])
            seen.add(entry["id"])

    def _read_object(self, place: str, entry: dict[str, Any], image_id: str, label: int) -> None:
        box = entry["bbox"]
        if len(box) != 4 or not all(_is_number(value) for value in box):
            self.refuse(f"{place}/bbox", f"expected four finite numbers x, y, w, h, got {box}", "Correct the box")
            return
        x, y, width, height = map(float, box)
        if height == 0 and image_id in _PUBLISHED_EMPTY:
            return
        image = self.images[image_id]
        try:
            corners = clip_box((x, y, x + width, y + height), image["width"], image["height"])
        except ValueError as error:
            remedy = "Correct the bbox (x, y, width, height in pixels from 0), or remove the annotation"
            self.refuse(f"{place}/bbox", f"{error} in image {image_id}", remedy)
            return
        difficult = bool(entry.get("difficult", 0) or entry.get("ignore", 0))
        self.objects[image_id].append(_Object(corners, label, difficult, bool(entry.get("iscrowd", 0))))

    def records(self) -> tuple[ImageRecord, ...]:
        return tuple(self._record(image_id, entry) for image_id, entry in self.images.items())

    def _record(self, image_id: str, entry: dict[str, Any]) -> ImageRecord:
        objects = self.objects.get(image_id, [])
        return ImageRecord(
            image_id=image_id,
            path=self.folder / entry["file_name"],
            width=entry["width"],
            height=entry["height"],
            boxes=np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4),
            labels=np.array([item.label for item in objects], dtype=np.int64),
            difficult=np.array([item.difficult for item in objects], dtype=bool),
            crowd=np.array([item.crowd for item in objects], dtype=bool),
            unlabelled=self.unlabelled.get(image_id, frozenset()),
        )

    def _entries(self, content: dict[str, Any], section: str, keys: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """The section's entries that hold ``keys`` in the stated types, each with its place in the file."""
        entries = content.get(section)
        if not isinstance(entries, list):
            problem = f"expected a list, got {type(entries).__name__}"
            self.refuse(section, problem, "A COCO file has the lists images, annotations and categories")
            return []
        usable = []
        for index, entry in enumerate(entries):
            place = f"{section}[{index}]"
            wrong = _wrong_key(entry, keys)
            if wrong is None:
                usable.append((place, entry))
            else:
                self.refuse(place, wrong, f"Each of {section} needs {', '.join(keys)}")
        return usable


def _read_json(file: Path, report: Report) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        report(Defect(str(file), "", f"cannot be read ({error.strerror})", "Correct the path of the annotation file"))
        return {}
    except (ValueError, RecursionError) as error:  # ValueError: malformed JSON, or text that is no UTF-8
        report(Defect(str(file), "", f"is no JSON that can be read ({error})", "Copy or download the file again"))
        return {}
    if not isinstance(content, dict):
        problem = f"expected an object at the top, got {type(content).__name__}"
        report(Defect(str(file), "", problem, "Give the annotation file (instances_*.json), not a results file"))
        return {}
    return content


def _wrong_key(entry: Any, keys: dict[str, Any]) -> str | None:
    if not isinstance(entry, dict):
        return f"expected an object, got {type(entry).__name__}"
    for key, types in keys.items():
        value = entry.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            return f"{key} is missing" if key not in entry else f"{key} has the unusable value {value!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
