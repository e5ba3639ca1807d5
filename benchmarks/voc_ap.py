"""How long VOC's AP, AP50 and AP75 take: ours against Detectron2's evaluator, on the same detections.

The set has the size of VOC 2007 test: 4,952 images, 20 classes, 50 detections per image. Without Detectron2 the other
side is a plain loop over the detections, written here from the devkit's rule. Run it with an interpreter that has
Detectron2: ``OMP_NUM_THREADS=1 python benchmarks/voc_ap.py``. The last line is ``voc_ap <ratio>``.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.evaluation.predictions import Predictions
from incdet.evaluation.voc_ap import COCO_IOUS, area_ap, voc_ap

CLASSES = tuple(f"class_{number:02d}" for number in range(20))
Metrics = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4952)
    parser.add_argument("--detections", type=int, default=50, help="per image")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data, found = make_set(arguments.images, arguments.detections)
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("detectron2"):
            name, other = "detectron2", detectron2_side(Path(folder), data, found)
        else:
            name, other = "plain loop", lambda: loop_metrics(data, found)
        with mock.patch("numpy.argsort", functools.partial(np.argsort, kind="stable")):  # rounded scores tie
            theirs = other()  # not timed: Detectron2 also parses its XML files here, once for all rounds
        times: dict[str, list[float]] = {"incdet": [], name: []}
        for _ in range(arguments.rounds):
            ours = timed(times["incdet"], lambda: our_metrics(data, found))
            timed(times[name], other)
    print(f"{len(data)} images, {len(found)} detections, {len(CLASSES)} classes, median of {arguments.rounds} rounds")
    for side, seconds in times.items():
        print(f"{side:12s} {statistics.median(seconds):8.3f} s   {' '.join(f'{s:.3f}' for s in seconds)}")
    for metric, value in ours.items():
        print(f"{metric:5s} incdet {value:.6f}   {name} {theirs[metric]:.6f}")
    print(f"voc_ap {statistics.median(times[name]) / statistics.median(times['incdet']):.1f}")


def make_set(images: int, detections: int) -> tuple[DetectionDataset, Predictions]:
    """Whole-pixel objects, one to five per image; half of the detections lie near one, half anywhere."""
    rng = np.random.default_rng(0)
    records, boxes, labels = [], [], []
    for number in range(images):
        count = int(rng.integers(1, 6))
        truth = random_boxes(rng, count)
        classes = rng.integers(0, len(CLASSES), count)
        none = np.zeros(count, dtype=bool)
        records.append(
            ImageRecord(f"{number:06d}", Path("none"), 500, 500, truth, classes, rng.random(count) < 0.15, none)
        )
        target = rng.integers(0, count, detections)
        near = rng.random(detections) < 0.5
        moved = truth[target] + rng.normal(0, 12, (detections, 4)).astype(np.float32)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 2)
        boxes.append(np.where(near[:, None], moved, random_boxes(rng, detections)))
        labels.append(np.where(near, classes[target], rng.integers(0, len(CLASSES), detections)))
    scores = rng.random(images * detections).astype(np.float32)
    index = np.repeat(np.arange(images), detections)
    ids = tuple(record.image_id for record in records)
    found = Predictions(ids, CLASSES, index, np.concatenate(boxes), scores, np.concatenate(labels))
    return DetectionDataset("benchmark", CLASSES, tuple(records)), found


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.integers(0, 350, (count, 2))
    return np.concatenate([low, low + rng.integers(20, 150, (count, 2))], axis=1).astype(np.float32)


def timed(seconds: list[float], measure: Callable[[], Metrics]) -> Metrics:
    start = time.perf_counter()
    metrics = measure()
    seconds.append(time.perf_counter() - start)
    return metrics


def our_metrics(data: DetectionDataset, found: Predictions) -> Metrics:
    by_iou = 100 * voc_ap(data, found, ious=COCO_IOUS, convention="detectron2").area.mean(axis=0)
    return {"AP": by_iou.mean(), "AP50": by_iou[0], "AP75": by_iou[COCO_IOUS.index(0.75)]}


def detectron2_side(folder: Path, data: DetectionDataset, found: Predictions) -> Callable[[], Metrics]:
    """Detectron2's ``evaluate()`` alone; collecting the detections as text (``process``) is not counted."""
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    logging.disable(logging.INFO)
    write_voc(folder, data)
    MetadataCatalog.get("benchmark").set(dirname=str(folder), split="test", year=2012, thing_classes=list(CLASSES))
    evaluator = PascalVOCDetectionEvaluator("benchmark")
    evaluator.reset()
    for image, rows in zip(data.images, np.split(np.arange(len(found)), len(data)), strict=True):
        instances = Instances((image.height, image.width))
        instances.pred_boxes = Boxes(torch.from_numpy(found.boxes[rows]))
        instances.scores = torch.from_numpy(found.scores[rows])
        instances.pred_classes = torch.from_numpy(found.labels[rows])
        evaluator.process([{"image_id": image.image_id}], [{"instances": instances}])
    return lambda: evaluator.evaluate()["bbox"]


def write_voc(folder: Path, data: DetectionDataset) -> None:
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for image in data.images:
        rows = zip(image.labels, image.difficult, image.boxes.astype(int) + [1, 1, 0, 0], strict=True)
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(hard)}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for label, hard, box in rows
        )
        (folder / "Annotations" / f"{image.image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(image.image_id for image in data.images))


def loop_metrics(data: DetectionDataset, found: Predictions) -> Metrics:
    """The devkit's rule one detection and one threshold at a time, with Detectron2's rounding."""
    boxes = np.rint((found.boxes + np.float32([1, 1, 0, 0])).astype(np.float64) * 10) / 10
    scores = np.rint(found.scores.astype(np.float64) * 1000) / 1000
    by_iou = [
        np.mean([100 * loop_ap(data, found, boxes, scores, label, iou) for label in range(len(CLASSES))])
        for iou in COCO_IOUS
    ]
    return {"AP": float(np.mean(by_iou)), "AP50": by_iou[0], "AP75": by_iou[COCO_IOUS.index(0.75)]}


def loop_ap(
    data: DetectionDataset, found: Predictions, boxes: np.ndarray, scores: np.ndarray, label: int, iou: float
) -> float:
    """Area AP of one class at one threshold."""
    truth, taken, counted = [], [], 0
    for image in data.images:
        mine = image.labels == label
        truth.append((image.boxes[mine] + [1, 1, 0, 0], image.difficult[mine]))
        taken.append(np.zeros(mine.sum(), dtype=bool))
        counted += int((~image.difficult[mine]).sum())
    rows = np.flatnonzero(found.labels == label)
    true, false = [], []
    for row in rows[np.argsort(-scores[rows], kind="stable")]:
        image = found.image_index[row]
        objects, difficult = truth[image]
        overlaps = overlaps_with(boxes[row], objects) if len(objects) else np.zeros(1)
        best = int(np.argmax(overlaps))
        hit = overlaps[best] > iou
        ignored = hit and difficult[best]
        new = hit and not ignored and not taken[image][best]
        if new:
            taken[image][best] = True
        true.append(new)
        false.append(not new and not ignored)
    found_so_far, wrong_so_far = np.cumsum(true), np.cumsum(false)
    return area_ap(found_so_far / counted, found_so_far / np.maximum(found_so_far + wrong_so_far, 1))


def overlaps_with(box: np.ndarray, objects: np.ndarray) -> np.ndarray:
    shared = np.maximum(np.minimum(box[2:], objects[:, 2:]) - np.maximum(box[:2], objects[:, :2]) + 1, 0).prod(axis=1)
    return shared / ((box[2:] - box[:2] + 1).prod() + (objects[:, 2:] - objects[:, :2] + 1).prod(axis=1) - shared)


if __name__ == "__main__":
    main()
