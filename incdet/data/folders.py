"""Images for classification: ``<folder>/<split>/<class>/<image>``, one folder per class.

Each image becomes a record with one object that covers it, so that streams, views, memories and fingerprints are those
of detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from incdet.data.defects import Defect, DefectError, Report, refuse
from incdet.data.images import image_size
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_folders(
    root: str | Path, split: str, classes: Sequence[str] | None = None, name: str = "", report: Report = refuse
) -> DetectionDataset:
    """Reads ``root/split``; an image's id is ``<class>/<file name without suffix>``.

    Args:
        root: of the data set.
        split: the folder in it, such as ``train``.
        classes: the folders to read, in this order; None or none reads all, by name.
        name: of the data set.
        report: what to do with an image that cannot be opened; the default raises.

    Raises:
        DataError: there is no such folder, a class has no image, or an image is damaged.
    """
    folder = Path(root) / split
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    names = tuple(classes or found)
    if not names or not set(names) <= set(found):
        missing = ", ".join(sorted(set(names) - set(found))) or "any class"
        raise DataError(
            f"Data set {name or str(folder)!r}: expected one folder per class in {folder}, found none for {missing}. "
            "Lay the images out as <folder>/<split>/<class>/<image>, or correct DATASETS.CLASSES."
        )
    images = []
    for label, class_name in enumerate(names):
        paths = sorted(path for path in (folder / class_name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise DataError(f"{folder / class_name} holds no image ({', '.join(SUFFIXES)}). Add some, or remove it.")
        for path in paths:
            try:
                images.append(_record(path, f"{class_name}/{path.stem}", label))
            except DefectError as error:
                report(error.defect)
    repeated = len(images) - len({image.image_id for image in images})
    if repeated:
        remedy = "Rename them"
        report(Defect(str(folder), "", f"{repeated} images share their names with others but for the suffix", remedy))
    return DetectionDataset(name or f"{folder}", names, tuple(images))


def _record(path: Path, image_id: str, label: int) -> ImageRecord:
    width, height = image_size(path)
    return ImageRecord(
        image_id=image_id,
        path=path,
        width=width,
        height=height,
        boxes=np.array([[0, 0, width, height]], np.float32),
        labels=np.array([label]),
        difficult=np.zeros(1, bool),
        crowd=np.zeros(1, bool),
    )
