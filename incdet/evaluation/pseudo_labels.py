"""How good the pseudo-labels are, measured against the labels that the task hides.

Nothing here reaches training: the figures go into the task's result, so that a threshold can be judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from incdet.data.records import ImageRecord


def precision_and_recall(
    records: Sequence[ImageRecord],
    record_classes: Sequence[str],
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    classes: Sequence[str],
    iou: float = 0.5,
) -> dict[str, dict[str, float | int | None]]:
    """Precision and recall of pseudo-labels, per class.

    Each hidden object is found by at most one pseudo-label of its class, the one that overlaps it most. Where nobody
    labelled a class in an image, its pseudo-labels there are given but not judged.

    Args:
        records: images with all their labels.
        record_classes: what a label of a record means.
        found: per image, boxes (n, 4) and labels (n,) as positions in ``classes``.
        classes: the classes that pseudo-labels may have.
        iou: overlap from which a pseudo-label counts as right.

    Returns:
        Per class ``precision``, ``recall`` (None where undefined), ``given`` and ``hidden`` (counts; ``hidden`` is None
        where nobody labelled the class in any image).
    """
    counts = {name: np.zeros(4, dtype=int) for name in classes}  # right, judged, given, hidden
    for record, (boxes, labels) in zip(records, found, strict=True):
        names = np.array([record_classes[label] for label in record.labels])
        labelled = _labelled(record, record_classes)
        for label, name in enumerate(classes):
            mine, hidden = boxes[labels == label], record.boxes[(names == name) & ~record.crowd]
            judged = len(mine) if name in labelled else 0
            if len(mine) or len(hidden):
                counts[name] += (_right(mine, hidden, iou), judged, len(mine), len(hidden))
    known = {name for record in records for name in _labelled(record, record_classes)}
    return {
        name: {
            "precision": round(right / judged, 4) if judged else None,
            "recall": round(right / hidden, 4) if hidden else None,
            "given": int(given),
            "hidden": int(hidden) if name in known else None,
        }
        for name, (right, judged, given, hidden) in counts.items()
    }


def _labelled(record: ImageRecord, classes: Sequence[str]) -> set[str]:
    return {name for label, name in enumerate(classes) if label not in record.unlabelled}


def _right(boxes: np.ndarray, hidden: np.ndarray, iou: float) -> int:
    """How many hidden objects are the best match, above ``iou``, of some box."""
    if len(boxes) == 0 or len(hidden) == 0:
        return 0
    overlap, best = box_iou(torch.from_numpy(boxes), torch.from_numpy(hidden)).max(dim=1)
    return len(best[overlap >= iou].unique())
