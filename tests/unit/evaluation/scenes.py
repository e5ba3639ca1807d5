"""Small test sets with known objects, and random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.evaluation.predictions import Predictions


def image(image_id, boxes, labels, difficult=(), crowd=()):
    count = len(labels)
    return ImageRecord(
        image_id,
        Path(f"{image_id}.jpg"),
        500,
        500,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.isin(np.arange(count), difficult),
        np.isin(np.arange(count), crowd),
    )


def dataset(images, classes=("cat", "dog")):
    return DetectionDataset("scenes", tuple(classes), tuple(images))


def predictions(data, rows, classes=None):
    """``rows`` of (image position, box, score, label)."""
    index, boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Predictions(
        tuple(record.image_id for record in data.images),
        tuple(classes or data.classes),
        np.array(index, dtype=np.int64),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(labels, dtype=np.int64),
    )


def random_scene(seed, images=25, classes=("cat", "dog", "cow"), detections=12, crowd=False):
    """Whole-pixel objects of which some are difficult, and detections near them or anywhere; scores are distinct."""
    rng = np.random.default_rng(seed)
    records, rows = [], []
    for position in range(images):
        count = int(rng.integers(0, 5))
        corner = rng.integers(0, 300, (count, 2))
        boxes = np.concatenate([corner, corner + rng.integers(10, 150, (count, 2))], axis=1)
        labels = rng.integers(0, len(classes), count)
        hard = np.flatnonzero(rng.random(count) < 0.2)
        crowds = np.flatnonzero(rng.random(count) < 0.1) if crowd else ()
        records.append(image(f"{position:06d}", boxes, labels, hard, crowds))
        for _ in range(detections):
            near = count > 0 and rng.random() < 0.7
            target = int(rng.integers(count)) if near else 0
            box = boxes[target] if near else np.array([50, 50, 150, 150])
            moved = box + rng.normal(0, 8, 4)
            moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
            label = labels[target] if near and rng.random() < 0.8 else rng.integers(len(classes))
            rows.append([position, moved, 0.0, label])
    scores = rng.permutation(len(rows)) + 1
    for row, score in zip(rows, scores, strict=True):
        row[2] = score / 1000
    data = dataset(records, classes)
    return data, predictions(data, rows)
