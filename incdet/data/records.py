"""A detection dataset in memory: images, and every object that was labelled in them.

Both readers (VOC, COCO) produce these records. They hold the *whole* truth; what a task may see of it is decided
later, in one place (``incdet.data.views``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and all of its labelled objects."""

    image_id: str
    path: Path
    width: int
    height: int
    boxes: np.ndarray  # (n, 4) float32 xyxy, continuous pixels (see incdet.structures)
    labels: np.ndarray  # (n,) int64, index into DetectionDataset.classes
    difficult: np.ndarray  # (n,) bool; VOC's flag: not counted when scoring
    crowd: np.ndarray  # (n,) bool; COCO's iscrowd: ignored when training and scoring
    unlabelled: frozenset[int] = frozenset()  # labels whose objects nobody marked here: detections are not judged


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Images of one named set, and the classes in the order the source lists them."""

    name: str
    classes: tuple[str, ...]
    images: tuple[ImageRecord, ...]

    def fingerprint(self) -> str:
        """A sha256 over classes, image ids, boxes and labels: equal data, equal fingerprint, on any machine."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for image in self.images:
            digest.update(f"\n{image.image_id} {image.width} {image.height}\n".encode())
            for array in (image.boxes, image.labels, image.difficult, image.crowd):
                digest.update(np.ascontiguousarray(array).tobytes())
            if image.unlabelled:
                digest.update(f"unlabelled {sorted(image.unlabelled)}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)
