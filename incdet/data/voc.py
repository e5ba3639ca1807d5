"""The PASCAL VOC layout: one XML file per image.

A folder holds ``Annotations/<id>.xml``, ``ImageSets/Main/<split>.txt`` with one id per line, and
``JPEGImages/<id>.jpg`` (or ``.jpeg``, ``.png``). The split ``*`` is every annotation there is, so that a folder of
newly labelled images needs no ``ImageSets``.

Pixels: VOC counts them from 1 and its box holds both of its end pixels. Our boxes are continuous (see
``incdet.structures``), so ``x1 = xmin - 1``, ``y1 = ymin - 1``, ``x2 = xmax``, ``y2 = ymax``.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from defusedxml.ElementTree import fromstring
from tqdm import tqdm

from incdet.data.defects import Defect, DefectError, Report, clip_box, refuse
from incdet.data.images import image_size
from incdet.data.records import DetectionDataset, ImageRecord

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
EVERY_ANNOTATION = "*"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_QUIET_FILES = 2000  # more files than this take long enough for a progress bar


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    image_id: str
    file: Path
    image: Path
    width: int
    height: int
    objects: list[_Object]


def load_voc(
    root: str | Path,
    split: str,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    report: Report = refuse,
) -> DetectionDataset:
    """Reads a folder in VOC layout (Everingham et al., IJCV 2010).

    Args:
        root: the folder that holds ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: file name in ``ImageSets/Main`` without ``.txt``; several are joined by ``+``. ``*`` is every annotation.
        classes: names in the order labels shall count them. None or none takes the 20 VOC classes when
            every object is one of them, else the names found, sorted.
        name: the data set's name; None composes it of folder and split.
        report: what to do with a defect; the default raises.

    Raises:
        DataError: a file is missing, damaged, or states what cannot be.
    """
    root = Path(root)
    image_ids = _read_splits(root, split, report)
    images = _find_images(root)
    annotations = []
    for image_id in tqdm(image_ids, desc=f"reading {root.name} {split}", disable=len(image_ids) <= _QUIET_FILES):
        try:
            annotations.append(_read_annotation(root, image_id, images, report))
        except DefectError as error:
            report(error.defect)
    names = tuple(classes) if classes else _infer_classes(annotations)
    records = tuple(_to_record(annotation, names, report) for annotation in annotations)
    return DetectionDataset(name or f"{root.name}_{split}", names, records)


def write_annotation(root: str | Path, record: ImageRecord, classes: Sequence[str]) -> None:
    """Writes ``Annotations/<id>.xml`` of one image; ``load_voc`` reads the same boxes back."""
    top = ET.Element("annotation")
    ET.SubElement(top, "filename").text = record.path.name
    size = ET.SubElement(top, "size")
    for tag, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for (x1, y1, x2, y2), label, difficult in zip(record.boxes.tolist(), record.labels, record.difficult, strict=True):
        element = ET.SubElement(top, "object")
        ET.SubElement(element, "name").text = classes[label]
        ET.SubElement(element, "difficult").text = str(int(difficult))
        box = ET.SubElement(element, "bndbox")
        for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ET.SubElement(box, tag).text = f"{value:.12g}"  # enough for any float32 to come back
    ET.indent(top)
    folder = Path(root, "Annotations")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{record.image_id}.xml").write_bytes(ET.tostring(top))


def _read_splits(root: Path, split: str, report: Report) -> list[str]:
    """The ids of the splits that ``split`` names, each once."""
    if split == EVERY_ANNOTATION:
        found = sorted(file.stem for file in (root / "Annotations").glob("*.xml"))
        if not found:
            report(Defect(str(root / "Annotations"), "", "the folder holds no annotation", "Write one XML per image"))
        return found
    ids: dict[str, None] = {}
    for part in split.split("+"):
        file = root / "ImageSets" / "Main" / f"{part}.txt"
        lines = _read_lines(file, report)
        if lines == []:
            report(Defect(str(file), "", "the split lists no image", "Write one image id per line"))
        for image_id in lines or []:
            if image_id in ids:
                report(Defect(str(file), image_id, "the id is listed a second time", "Keep one of the lines"))
            ids[image_id] = None
    return list(ids)


def _read_lines(file: Path, report: Report) -> list[str] | None:
    """The file's lines that are not blank, or None where it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        remedy = f"Name a split that the folder has ({known}), or write the file: one image id per line"
        report(Defect(str(file), "", f"the split file cannot be read ({error})", remedy))
        return None
    return [line.strip() for line in lines if line.strip()]


def _find_images(root: Path) -> dict[str, Path]:
    """Image id -> file. One listing of the folder is far cheaper than asking for each file in turn."""
    folder = root / "JPEGImages"
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}


def _read_annotation(root: Path, image_id: str, images: dict[str, Path], report: Report) -> _Annotation:
    file = root / "Annotations" / f"{image_id}.xml"
    top = _parse_xml(file)
    if image_id not in images:
        missing = root / "JPEGImages" / f"{image_id}.jpg"
        remedy = f"Add the image ({', '.join(IMAGE_SUFFIXES)}), or take the id out of the split"
        raise DefectError(Defect(str(missing), "", "the image of a listed id is missing", remedy))
    width, height = _read_size(top, file, images[image_id])
    objects = []
    for index, element in enumerate(top.findall("object")):
        try:
            objects.append(_read_object(element, file, f"object[{index}]", width, height))
        except DefectError as error:
            report(error.defect)
    return _Annotation(image_id, file, images[image_id], width, height, objects)


def _parse_xml(file: Path) -> ET.Element:
    try:
        return fromstring(file.read_bytes())
    except OSError as error:
        remedy = "Add the annotation (without <object> where the image has none), or take the id out of the split"
        raise DefectError(Defect(str(file), "", f"cannot be read ({error.strerror})", remedy)) from error
    except (ET.ParseError, ValueError, LookupError) as error:  # defusedxml's refusals are ValueErrors
        remedy = "Copy the file again; it must be plain XML without entity declarations"
        raise DefectError(Defect(str(file), "", f"is no XML that can be read ({error!r})", remedy)) from error


def _read_size(top: ET.Element, file: Path, image: Path) -> tuple[int, int]:
    """``(width, height)`` as annotated, or of the image itself where the annotation leaves them out or zero."""
    element = top.find("size")
    if element is None:
        return image_size(image)
    width, height = (int(_read_number(element, tag, file, "size")) for tag in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else image_size(image)


def _read_object(element: ET.Element, file: Path, place: str, width: int, height: int) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DefectError(Defect(str(file), f"{place}/name", "the class name is missing", "Name the object's class"))
    box = element.find("bndbox")  # a direct child: the boxes of an object's <part>s are deeper
    if box is None:
        remedy = "Give the object a <bndbox>, or remove it"
        raise DefectError(Defect(str(file), f"{place}/bndbox", f"the {name} has no box of its own", remedy))
    inside = f"{place}/bndbox"
    xmin, ymin, xmax, ymax = (_read_number(box, tag, file, inside) for tag in ("xmin", "ymin", "xmax", "ymax"))
    try:
        corners = clip_box((xmin - 1, ymin - 1, xmax, ymax), width, height)
    except ValueError as error:
        remedy = "Correct the object's corners (pixels counted from 1, both ends inside), or remove it"
        raise DefectError(Defect(str(file), inside, f"{name}: {error}", remedy)) from error
    difficult = element.find("difficult") is not None and _read_number(element, "difficult", file, place) != 0
    return _Object(name, corners, difficult)


def _read_number(parent: ET.Element, tag: str, file: Path, place: str) -> float:
    text = parent.findtext(tag)
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        problem = "the field is missing" if text is None else f"expected a finite number, got {text!r}"
        raise DefectError(Defect(str(file), f"{place}/{tag}", problem, f"Write <{tag}> as a number"))
    return number


def _infer_classes(annotations: list[_Annotation]) -> tuple[str, ...]:
    found = {item.name for annotation in annotations for item in annotation.objects}
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _to_record(annotation: _Annotation, classes: tuple[str, ...], report: Report) -> ImageRecord:
    index = {name: label for label, name in enumerate(classes)}
    for item in annotation.objects:
        if item.name not in index:
            remedy = "Correct the name, or add it to the classes of the data set"
            problem = f"unknown class {item.name!r}; the classes are {', '.join(classes)}"
            report(Defect(str(annotation.file), "object/name", problem, remedy))
    known = [item for item in annotation.objects if item.name in index]
    return ImageRecord(
        image_id=annotation.image_id,
        path=annotation.image,
        width=annotation.width,
        height=annotation.height,
        boxes=np.array([item.box for item in known], dtype=np.float32).reshape(-1, 4),
        labels=np.array([index[item.name] for item in known], dtype=np.int64),
        difficult=np.array([item.difficult for item in known], dtype=bool),
        crowd=np.zeros(len(known), dtype=bool),
    )
