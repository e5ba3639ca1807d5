"""Small VOC folders and predictions for the pictures of a report."""

import json
from pathlib import Path

import cv2
import numpy as np


def write_voc_images(root: Path, classes, count=4, side=128) -> list[dict]:
    """``shapes_test`` in VOC layout: plain rectangles, two per image; returns what was drawn."""
    generator = np.random.default_rng(0)
    base = root / "shapes"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / part).mkdir(parents=True, exist_ok=True)
    truth = []
    for index in range(count):
        image_id = f"{index:06d}"
        image = cv2.GaussianBlur(generator.integers(150, 220, (side, side, 3), dtype=np.uint8), (0, 0), 3)
        objects = []
        for slot in range(2):
            name = classes[(index + slot * len(classes) // 2) % len(classes)]
            x, y = 10 + 60 * slot, int(generator.integers(10, 60))
            cv2.rectangle(image, (x, y), (x + 40, y + 45), generator.integers(0, 120, 3).tolist(), -1)
            objects.append((name, (x, y, x + 40, y + 45)))
        cv2.imwrite(str(base / "JPEGImages" / f"{image_id}.jpg"), image)
        (base / "Annotations" / f"{image_id}.xml").write_text(voc_annotation(image_id, side, objects))
        truth.append({"image_id": image_id, "objects": objects})
    (base / "ImageSets/Main/test.txt").write_text("".join(f"{one['image_id']}\n" for one in truth))
    return truth


def voc_annotation(image_id, side, objects) -> str:
    boxes = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
    return f"<annotation><filename>{image_id}.jpg</filename>{size}{boxes}</annotation>"


def write_predictions(folder: Path, task: int, classes, found) -> None:
    """``found``: (image_id, class name, (x1, y1, x2, y2), score) of each detection."""
    entries = [
        {"image_id": i, "category_id": classes.index(c) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for i, c, (x1, y1, x2, y2), score in found
    ]
    (folder / f"task_{task}" / "predictions.json").write_text(json.dumps(entries))
