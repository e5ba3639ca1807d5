"""Random test sets for comparing evaluators: whole-pixel objects, detections near them with fractional corners."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.evaluation.predictions import Predictions

CLASSES = ("bird", "boat", "bottle")


def random_set(
    seed: int, images: int = 30, difficult: float = 0.2, crowd: float = 0.0, tied: bool = False
) -> tuple[DetectionDataset, Predictions]:
    """Without ``tied`` all scores differ by at least 0.001, so that no rounding to three digits ties them."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(images):
        count = int(rng.integers(1, 6))
        low = rng.integers(0, 200, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(8, 200, (count, 2))], axis=1).astype(np.float32)
        flags = rng.random((2, count)) < [[difficult], [crowd]]
        labels = rng.integers(0, len(CLASSES), count)
        records.append(ImageRecord(f"{number:06d}", Path("none.jpg"), 400, 400, boxes, labels, *flags))
    index = np.sort(rng.integers(0, images, 900))
    chosen = [int(rng.integers(len(records[image].labels))) for image in index]
    boxes = np.stack([records[image].boxes[row] for image, row in zip(index, chosen, strict=True)])
    boxes = boxes + rng.normal(0, 12, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
    labels = np.array([records[image].labels[row] for image, row in zip(index, chosen, strict=True)])
    labels = np.where(rng.random(len(labels)) < 0.2, rng.integers(0, len(CLASSES), len(labels)), labels)
    scores = rng.integers(1, 20, len(labels)) / 20 if tied else (rng.permutation(len(labels)) + 1) / 1000
    data = DetectionDataset("random", CLASSES, tuple(records))
    ids = tuple(record.image_id for record in records)
    return data, Predictions(ids, CLASSES, index, boxes.astype(np.float32), scores.astype(np.float32), labels)
