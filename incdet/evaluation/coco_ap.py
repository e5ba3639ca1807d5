"""COCO average precision per class, computed by pycocotools.

``difficult`` objects are ignored as COCO ignores objects outside an area range: by ordinary IoU, one detection each.
Crowds keep COCO's own rule: any number of detections, by the share of the detection that lies on the crowd.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from incdet.data.coco import to_coco
from incdet.data.records import DetectionDataset
from incdet.evaluation.predictions import Predictions, scored_classes

_EVERY_AREA = (0, 1e10)
_DETECTIONS_PER_IMAGE = 100  # of one class, best first


@dataclass(frozen=True)
class CocoResult:
    """AP per class in 0..1; None where a class has no counted object."""

    ap: dict[str, float | None]  # mean over IoU 0.5, 0.55, ..., 0.95
    ap50: dict[str, float | None]
    ap75: dict[str, float | None]


def coco_ap(dataset: DetectionDataset, predictions: Predictions, classes: Sequence[str] | None = None) -> CocoResult:
    """COCO AP of ``classes`` (default: all of the dataset's) on every image of ``dataset`` (Lin et al., ECCV 2014).

    Detections of other classes are left out. The 101-point precision and the limit of 100 detections per image and
    class are COCO's. Raises DataError for a class or image that the dataset does not have.
    """
    names = scored_classes(dataset, classes)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        evaluation = _Evaluation(_index(to_coco(dataset)), _index(_results(dataset, predictions, names)), "bbox")
        evaluation.params.catIds = [dataset.classes.index(name) + 1 for name in names]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [_EVERY_AREA], ["all"]
        evaluation.params.maxDets = [_DETECTIONS_PER_IMAGE]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # (IoU, recall point, class); -1 where undefined
    columns = [evaluation.params.catIds.index(dataset.classes.index(name) + 1) for name in names]  # it sorted them
    precision, ious = precision[:, :, columns], evaluation.params.iouThrs
    return CocoResult(
        ap=_per_class(names, precision),
        ap50=_per_class(names, precision[np.isclose(ious, 0.5)]),
        ap75=_per_class(names, precision[np.isclose(ious, 0.75)]),
    )


class _Evaluation(COCOeval):
    """COCOeval sets the mark "ignore" to "iscrowd" and so forgets ``difficult``; this puts it back."""

    def _prepare(self) -> None:
        super()._prepare()
        for truth in chain.from_iterable(self._gts.values()):
            truth["ignore"] = truth["ignore"] or truth["difficult"]


def _results(dataset: DetectionDataset, predictions: Predictions, names: Sequence[str]) -> dict[str, Any]:
    """Detections of the scored classes in COCO's layout, with the image and category ids that ``to_coco`` gives."""
    category = {name: dataset.classes.index(name) + 1 for name in names}
    image_ids = [record.image_id for record in dataset.images]
    image = predictions.positions_in(image_ids, dataset.name)
    corners = predictions.boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    detections = [
        {
            "id": row + 1,
            "image_id": image_ids[image[row]],
            "category_id": category[predictions.classes[label]],
            "bbox": [*corners[row, :2].tolist(), *sides[row].tolist()],
            "area": float(sides[row].prod()),
            "score": float(predictions.scores[row]),
        }
        for row, label in enumerate(predictions.labels)
        if predictions.classes[label] in category
    ]
    return {"images": [], "categories": [], "annotations": detections}


def _index(content: dict[str, Any]) -> COCO:
    """The index that pycocotools keeps of a data set in memory."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _per_class(names: Sequence[str], precision: np.ndarray) -> dict[str, float | None]:
    """(IoU, recall point, class) averaged; a class without objects is -1 everywhere."""
    return {
        name: float(precision[:, :, column].mean()) if (precision[:, :, column] > -1).any() else None
        for column, name in enumerate(names)
    }
