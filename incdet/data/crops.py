"""Objects cut out of a detection data set, as images for classification: what a backbone is pretrained on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from incdet.data.images import read_image
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.errors import DataError
from incdet.files import explain_refusal, read_json, write_json

SMALLEST = 8  # pixels: an object whose longer side is shorter shows too little of its class. Ours
DESCRIPTION = "crops.json"  # beside the classes' folders: what was cut, and how


def write_crops(dataset: DetectionDataset, folder: Path, size: int, context: float) -> int:
    """Writes ``<folder>/<class>/<image id>_<number>.png`` of every object: the whole folder or nothing.

    Crowds, difficult objects and those smaller than ``SMALLEST`` are left out. A folder that was cut from the same
    objects in the same way stays as it is.

    Args:
        dataset: images with boxes.
        folder: to be made.
        size: the side of the squares that are written, in pixels.
        context: what a square shows on either side of its object, as a share of the object's longer side.

    Returns:
        How many objects were cut.

    Raises:
        DataError: there is no object to cut, an image is damaged, or ``folder`` holds something else.
    """
    description = {"schema": 1, "fingerprint": dataset.fingerprint(), "size": size, "context": context}
    if folder.exists():
        return _count_existing(folder, description)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with explain_refusal(folder), tempfile.TemporaryDirectory(prefix=".crops-", dir=folder.parent) as workshop:
        draft = Path(workshop, "crops")
        count = _write(dataset, draft, size, context)
        if not count:
            raise DataError(f"Data set {dataset.name!r} has no object to cut out: none is labelled, or all are tiny.")
        write_json(draft / DESCRIPTION, {**description, "objects": count})
        draft.replace(folder)
    return count


def _write(dataset: DetectionDataset, folder: Path, size: int, context: float) -> int:
    count = 0
    for record in tqdm(dataset.images, f"crops of {dataset.name}", unit="image"):
        for name, pixels in _crops(record, dataset.classes, size, context):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            count += 1
    return count


def _count_existing(folder: Path, description: dict[str, Any]) -> int:
    path = folder / DESCRIPTION
    content = read_json(path, "what the crops beside it were cut from") if path.exists() else {}
    if {key: content.get(key) for key in description} != description:
        raise DataError(f"{folder} holds other images than the crops asked for. Remove it, or choose another --out.")
    return content["objects"]


def _crops(
    record: ImageRecord, classes: tuple[str, ...], size: int, context: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Name below the folder, and (size, size, 3) BGR, of each object of an image."""
    wanted = ~record.crowd & ~record.difficult & ((record.boxes[:, 2:] - record.boxes[:, :2]).max(axis=1) >= SMALLEST)
    if not wanted.any():
        return
    image = cv2.cvtColor(read_image(record.path).permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR)
    for number in np.flatnonzero(wanted):
        x1, y1, x2, y2 = record.boxes[number].tolist()
        side = round((1 + 2 * context) * max(x2 - x1, y2 - y1))
        # Half a pixel, because opencv's coordinates are those of pixels' centres. It repeats the image's border.
        square = cv2.getRectSubPix(image, (side, side), ((x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2))
        rule = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
        class_name = classes[record.labels[number]].replace("/", "-")
        name = f"{class_name}/{record.image_id.replace('/', '-')}_{number}.png"
        yield name, cv2.resize(square, (size, size), interpolation=rule)
