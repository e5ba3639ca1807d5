"""PASCAL VOC average precision under both published rules, at any list of IoU thresholds, in one pass.

Shape glossary
--------------
D  detections of the scored classes, grouped by class, best first     G  ground-truth objects of the scored classes
C  scored classes                                                     T  IoU thresholds

Matching (VOC devkit, ``VOCevaldet.m``): per class and in falling score order, a detection belongs to the object of its
class and image that it overlaps most. It is a true positive when that overlap reaches the threshold and nobody took the
object before, ignored when the object is ``difficult`` or a crowd, and a false positive otherwise. Detections of equal
score keep the order in which they came, as in the devkit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from incdet.data.records import DetectionDataset
from incdet.evaluation.predictions import Predictions, scored_classes

Convention = Literal["devkit", "detectron2", "maskrcnn_benchmark"]

COCO_IOUS = tuple((50 + 5 * step) / 100 for step in range(10))  # Detectron2's "AP" averages over these
FALSE_POSITIVE, TRUE_POSITIVE, IGNORED_DETECTION = 0, 1, 2

_EPS = np.finfo(np.float64).eps
_RECALL_POINTS = np.arange(0.0, 1.1, 0.1)  # not linspace: its 0.30000000000000004 is what the other evaluators use


class Curve(NamedTuple):
    """Precision and recall after each detection of one class, best first; ignored detections change neither."""

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class VocResult:
    """Average precision per class (rows) and IoU threshold (columns); NaN where a class has no counted object."""

    classes: tuple[str, ...]
    ious: tuple[float, ...]
    area: np.ndarray  # (C, T) area under the precision envelope: VOC 2010 and later
    eleven_point: np.ndarray  # (C, T) mean of the envelope at recall 0, 0.1, ..., 1: VOC 2007
    objects: np.ndarray  # (C,) counted objects
    scores: np.ndarray  # (D,)
    outcomes: np.ndarray  # (T, D) int8: FALSE_POSITIVE, TRUE_POSITIVE or IGNORED_DETECTION
    ends: np.ndarray  # (C + 1,) class c owns the detections ends[c]:ends[c + 1]

    def curve(self, name: str, iou: float = 0.5) -> Curve:
        """The precision and recall curve of one class at one of ``ious``; ValueError for any other."""
        row = self.classes.index(name)
        mine = slice(self.ends[row], self.ends[row + 1])
        recall, precision = _curve(self.outcomes[self.ious.index(iou), mine], int(self.objects[row]))
        return Curve(recall, precision, self.scores[mine])


def voc_ap(
    dataset: DetectionDataset,
    predictions: Predictions,
    classes: Sequence[str] | None = None,
    ious: Sequence[float] = (0.5, 0.75),
    convention: Convention = "devkit",
) -> VocResult:
    """VOC average precision of ``classes`` (default: all of the dataset's) on every image of ``dataset``.

    A dataset image without predictions counts with its missed objects; detections of other classes are left out.

    The conventions differ in the last pixel, in rounding and in exact ties with the threshold:

    - ``devkit``: a box of incdet's continuous coordinates, from ``xmin - 1`` to ``xmax``, has the area that the devkit
      computes as ``(xmax - xmin + 1) * (ymax - ymin + 1)``; a hit is an IoU of **at least** the threshold.
    - ``detectron2``: ``PascalVOCDetectionEvaluator``. The same areas, but detections pass through text first: 1-based
      corners rounded to 0.1 pixel, scores to 0.001; a hit is an IoU **above** the threshold. Rounded scores tie, and
      its sort leaves the order of ties open, so that its own result then depends on the machine; ours stays put.
    - ``maskrcnn_benchmark``: its ``voc_eval.py``, used by ABR and others, adds the last pixel twice: sides are one
      pixel longer than the devkit's, which favours small objects.

    Raises DataError for a class or image that the dataset does not have.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be one of {', '.join(get_args(Convention))}; got '{convention}'")
    names = scored_classes(dataset, classes)
    truth = _ground_truth(dataset, names)
    found = _detections(dataset, predictions, names, convention)
    overlap, match = _best_match(found, truth, sides_plus=2.0 if convention == "maskrcnn_benchmark" else 1.0)
    outcomes = np.stack(
        [
            _outcomes(overlap > iou if convention == "detectron2" else overlap >= iou, match, truth.ignored)
            for iou in ious
        ]
    )
    objects = np.bincount(truth.label[~truth.ignored], minlength=len(names))
    ends = np.searchsorted(found.label, np.arange(len(names) + 1))
    area, eleven_point = np.full((2, len(names), len(ious)), np.nan)
    for row in np.flatnonzero(objects):
        for column in range(len(ious)):
            curve = _curve(outcomes[column, ends[row] : ends[row + 1]], int(objects[row]))
            area[row, column], eleven_point[row, column] = area_ap(*curve), eleven_point_ap(*curve)
    return VocResult(names, tuple(ious), area, eleven_point, objects, found.score, outcomes, ends)


def area_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the monotone envelope of a curve whose recall never falls (VOC 2010 development kit)."""
    steps = np.diff(recall, prepend=0.0)
    return float(np.sum(steps * _envelope(precision)))


def eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean best precision at a recall of at least 0, 0.1, ..., 1 (Everingham et al., IJCV 2010, section 4.2)."""
    reached = np.searchsorted(recall, _RECALL_POINTS)
    best = np.append(_envelope(precision), 0.0)  # the last entry serves recalls that are never reached
    return float(np.sum(best[reached]) / len(_RECALL_POINTS))


class _Truth(NamedTuple):
    """Objects sorted by ``key``, which is unique to an image and class; input order within a key."""

    key: np.ndarray  # (G,)
    label: np.ndarray  # (G,)
    corners: np.ndarray  # (G, 4) float64, 1-based inclusive pixels
    ignored: np.ndarray  # (G,) bool


class _Found(NamedTuple):
    """Detections sorted by class, then by falling score."""

    key: np.ndarray  # (D,)
    label: np.ndarray  # (D,)
    corners: np.ndarray  # (D, 4) float64, 1-based inclusive pixels
    score: np.ndarray  # (D,) float64


def _ground_truth(dataset: DetectionDataset, names: tuple[str, ...]) -> _Truth:
    row_of = {name: row for row, name in enumerate(names)}
    translate = np.array([row_of.get(name, -1) for name in dataset.classes], dtype=np.int64)
    images = dataset.images
    counts = [len(image.labels) for image in images]
    label = translate[_concatenate([image.labels for image in images], np.zeros(0, np.int64))]
    boxes = _concatenate([image.boxes for image in images], np.zeros((0, 4), np.float32))
    ignored = _concatenate([image.difficult | image.crowd for image in images], np.zeros(0, bool))
    key = np.repeat(np.arange(len(images)), counts) * len(names) + label
    order = np.argsort(key, kind="stable")
    order = order[label[order] >= 0]
    return _Truth(key[order], label[order], _inclusive(boxes[order].astype(np.float64)), ignored[order])


def _detections(
    dataset: DetectionDataset, predictions: Predictions, names: tuple[str, ...], convention: Convention
) -> _Found:
    row_of = {name: row for row, name in enumerate(names)}
    translate = np.array([row_of.get(name, -1) for name in predictions.classes], dtype=np.int64)
    label = translate[predictions.labels]
    image = predictions.positions_in([record.image_id for record in dataset.images], dataset.name)
    corners, score = predictions.boxes, predictions.scores
    if convention == "detectron2":  # it adds 1 in float32, before it rounds
        corners, score = np.rint(_inclusive(corners).astype(np.float64) * 10) / 10, _rounded(score, 1000)
    else:
        corners, score = _inclusive(corners.astype(np.float64)), score.astype(np.float64)
    order = np.lexsort((-score, label))
    order = order[label[order] >= 0]
    return _Found(image[order] * len(names) + label[order], label[order], corners[order], score[order])


def _rounded(values: np.ndarray, per_unit: int) -> np.ndarray:
    """Decimal rounding as text does it: float32 values times 10 or 1000 are exact in float64."""
    return np.rint(values.astype(np.float64) * per_unit) / per_unit


def _inclusive(boxes: np.ndarray) -> np.ndarray:
    """Continuous 0-based ``x1, y1, x2, y2`` as the devkit's 1-based ``xmin, ymin, xmax, ymax``."""
    return boxes + np.array([1, 1, 0, 0], dtype=boxes.dtype)


def _best_match(found: _Found, truth: _Truth, sides_plus: float) -> tuple[np.ndarray, np.ndarray]:
    """Each detection's largest overlap (0 without any object) and the object it is with; the first of equals."""
    start = np.searchsorted(truth.key, found.key, side="left")
    count = np.searchsorted(truth.key, found.key, side="right") - start
    overlap, match = np.zeros(len(found.key)), np.zeros(len(found.key), dtype=np.int64)
    with_objects = np.flatnonzero(count)
    if not len(with_objects):
        return overlap, match
    count, start = count[with_objects], start[with_objects]
    first = np.cumsum(count) - count  # where each detection's run of pairs begins
    run = np.repeat(np.arange(len(with_objects)), count)
    other = start[run] + np.arange(len(run)) - first[run]
    iou = _iou(found.corners[with_objects[run]], truth.corners[other], sides_plus)
    best = np.maximum.reduceat(iou, first)
    winners = np.flatnonzero(iou == best[run])
    _, earliest = np.unique(run[winners], return_index=True)
    overlap[with_objects], match[with_objects] = best, other[winners[earliest]]
    return overlap, match


def _iou(one: np.ndarray, other: np.ndarray, sides_plus: float) -> np.ndarray:
    """IoU of paired ``(n, 4)`` boxes whose sides are ``max - min + sides_plus``."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    shared = np.prod(np.maximum(high - low + sides_plus, 0.0), axis=1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2] + sides_plus, axis=1) for boxes in (one, other)]
    return shared / np.maximum(areas[0] + areas[1] - shared, _EPS)


def _outcomes(hit: np.ndarray, match: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """One of the outcome codes per detection; those of one object must come best first."""
    outcome = np.full(len(hit), FALSE_POSITIVE, dtype=np.int8)
    hits = np.flatnonzero(hit)
    _, earliest = np.unique(match[hits], return_index=True)
    outcome[hits[earliest]] = TRUE_POSITIVE
    outcome[hits[ignored[match[hits]]]] = IGNORED_DETECTION
    return outcome


def _curve(outcomes: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    true, false = np.cumsum(outcomes == TRUE_POSITIVE), np.cumsum(outcomes == FALSE_POSITIVE)
    return true / max(objects, 1), true / np.maximum(true + false, _EPS)


def _envelope(precision: np.ndarray) -> np.ndarray:
    """The best precision at this recall or a higher one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _concatenate(arrays: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays) if arrays else empty
