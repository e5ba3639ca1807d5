"""Pseudo-labels: what the old detector finds in the new images is taught again.

The images of a task hold objects of the old classes, but unlabelled: the detector would learn that they are
background. Before the task, the previous detector looks at every image once; what it is sure of becomes a target.

Sources: the thresholds for the two stages and the overlap rule are NSGP-RePRE's (ICML 2025, released configuration),
a mixture's threshold is after GDA-IOD (ICCV 2025); the idea goes back to BPF (ECCV 2024) and CL-DETR (CVPR 2023). Those
detect in every step; detecting once per task (ours) makes a step cost what fine-tuning costs, and the labels can be
looked at (``task_<t>/pseudo_labels.json``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torchvision.ops import box_iou, nms

from incdet.data.records import DetectionDataset
from incdet.data.views import TaskView, TrainImage
from incdet.errors import ConfigError
from incdet.evaluation.predictions import Predictions, read_predictions, write_predictions
from incdet.evaluation.pseudo_labels import precision_and_recall
from incdet.methods.base import Method, TaskContext
from incdet.thresholds import mixture_threshold


class Found(NamedTuple):
    """Detections in one image, in its own pixels."""

    boxes: np.ndarray  # (n, 4)
    scores: np.ndarray  # (n,)
    labels: np.ndarray  # (n,) of old classes

    def select(self, rows: Any) -> Found:
        return Found(self.boxes[rows], self.scores[rows], self.labels[rows])


class Thresholds(NamedTuple):
    """The scores, per old class (K_old,), from which a detection counts."""

    rpn: np.ndarray  # a proposal target
    roi: np.ndarray  # a region target
    ignore: np.ndarray  # at least not background


class PseudoLabel(Method):
    """Teacher detections as targets, with a threshold per stage; uncertain ones are kept from being background."""

    DEFAULTS: ClassVar = {
        # dual: the scores below. fixed: SCORE_ROI in the place of all three. mixture: in the place of the first two a
        # score per class, from which a detection rather is of the better of two kinds; SCORE_ROI where that is unclear.
        "THRESHOLDS": "dual",
        "SCORE_RPN": 0.5,  # a detection from here on is a proposal target
        "SCORE_ROI": 0.7,  # a detection from here on is a region target
        "SCORE_IGNORE": 0.3,  # from here on, a region on the detection is at least not background. Ours
        "DROP_IOU": 0.7,  # a detection that overlaps a labelled object more than this is dropped
        # Of detections that overlap more than this only the surest stays, whatever their classes: one object has one
        # class. 1 keeps all, as the sources do. Ours
        "ONE_OBJECT_IOU": 1.0,
    }
    needs_teacher = True

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if node.THRESHOLDS not in ("fixed", "dual", "mixture"):
            name = type(self).__module__.rpartition(".")[2].upper()
            raise ConfigError(f"METHOD.{name}.THRESHOLDS: expected fixed, dual or mixture, got {node.THRESHOLDS!r}.")
        self._report: dict[str, Any] = {}

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        if context.teacher is None:
            return view
        found = self._found(view, self._detections(view, context))
        # In a stored image old classes are labelled, not hidden.
        fresh = [image.source == "task" for image in view.images]
        thresholds = self._thresholds(list(compress(found, fresh)), context.task.num_old)
        sure = [one.select(one.scores >= thresholds.roi[one.labels]) for one in compress(found, fresh)]
        records = [image.record for image in compress(view.images, fresh)]
        used = [(one.boxes, one.labels) for one in sure]
        quality = precision_and_recall(records, context.dataset.classes, used, context.task.old)
        self._report = {"pseudo_labels": quality}
        if self.cfg.THRESHOLDS == "mixture":
            chosen = zip(context.task.old, thresholds.roi.tolist(), strict=True)
            self._report["pseudo_label_thresholds"] = {name: round(score, 4) for name, score in chosen}
        pairs = zip(view.images, found, strict=True)
        return replace(view, images=tuple(self._taught(image, one, thresholds) for image, one in pairs))

    def report(self) -> dict[str, Any]:
        return self._report

    def weights(self, image: TrainImage, boxes: np.ndarray) -> np.ndarray:
        """How much a region counts that is matched to one of the boxes (n, 4) to be taught."""
        return np.ones(len(boxes), np.float32)

    def _detections(self, view: TaskView, context: TaskContext) -> Predictions:
        """The teacher's detections on the view's images; a resumed task reads those it began with.

        An image that is also in the memory is in the view twice, and looked at once.
        """
        path = context.task_folder / "pseudo_labels.json"
        images = tuple({image.record.image_id: image for image in view.images}.values())
        records = tuple(image.record for image in images)
        if not path.exists():
            found = context.detect(context.teacher, images, "pseudo-labels")
            ids = [record.image_id for record in records]
            predictions = Predictions.from_detections(zip(ids, found, strict=True), context.task.old)
            if not context.is_main:
                return predictions
            write_predictions(path, predictions)
        return read_predictions(path, DetectionDataset("task", context.task.old, records))

    def _found(self, view: TaskView, all_found: Predictions) -> list[Found]:
        """Per image of the view what says something new: of an unlabelled class, and not on a labelled object."""
        starts = np.searchsorted(all_found.image_index, np.arange(len(all_found.image_ids) + 1))
        rows = {name: slice(*starts[i : i + 2]) for i, name in enumerate(all_found.image_ids)}
        found = []
        for image in view.images:
            one = Found(all_found.boxes, all_found.scores, all_found.labels).select(rows[image.record.image_id])
            unlabelled = ~np.isin(one.labels, list(image.labelled))
            one = one.select(unlabelled & (largest_overlap(one.boxes, image.boxes) <= self.cfg.DROP_IOU))
            found.append(one.select(surest_of_overlapping(one, self.cfg.ONE_OBJECT_IOU)))
        return found

    def _thresholds(self, found: Sequence[Found], num_old: int) -> Thresholds:
        """What counts, given the task's detections."""
        cfg = self.cfg
        if cfg.THRESHOLDS != "mixture":
            by_rule = {"dual": (cfg.SCORE_RPN, cfg.SCORE_ROI, cfg.SCORE_IGNORE), "fixed": (cfg.SCORE_ROI,) * 3}
            return Thresholds(*(np.full(num_old, score, np.float32) for score in by_rule[cfg.THRESHOLDS]))
        all_found = Found(*(np.concatenate(column) for column in zip(*found, strict=True)))
        of_classes = (all_found.scores[all_found.labels == label] for label in range(num_old))
        both = np.array([mixture_threshold(scores, cfg.SCORE_ROI) for scores in of_classes], np.float32)
        return Thresholds(both, both, np.full(num_old, cfg.SCORE_IGNORE, np.float32))

    def _taught(self, image: TrainImage, found: Found, thresholds: Thresholds) -> TrainImage:
        """The image with what is sure, or at least not background, among its objects."""
        found = found.select(found.scores >= np.minimum.reduce(thresholds)[found.labels])
        return replace(
            image,
            boxes=np.concatenate([image.boxes, found.boxes]),
            labels=np.concatenate([image.labels, found.labels]),
            weights=np.concatenate([image.weights, self.weights(image, found.boxes)]),
            use_rpn=np.concatenate([image.use_rpn, found.scores >= thresholds.rpn[found.labels]]),
            use_roi=np.concatenate([image.use_roi, found.scores >= thresholds.roi[found.labels]]),
        )


def surest_of_overlapping(found: Found, iou: float) -> np.ndarray:
    """The rows of the detections that overlap no surer one, of whatever class, by more than ``iou``."""
    return nms(torch.from_numpy(found.boxes), torch.from_numpy(found.scores), iou).sort().values.numpy()


def largest_overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The IoU (n,) of each box (n, 4) with that of the others (m, 4) which it overlaps most; 0 where there is none."""
    if len(others) == 0:
        return np.zeros(len(boxes), np.float32)
    return box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).amax(dim=1).numpy()
