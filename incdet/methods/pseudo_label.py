"""Pseudo-labels: what the old detector finds in the new images is taught again.

The images of a task hold objects of the old classes, but unlabelled: the detector would learn that they are
background. Before the task, the previous detector looks at every image once; what it is sure of becomes a target.

Sources: the thresholds for the two stages and the overlap rule are NSGP-RePRE's (ICML 2025, released configuration);
the idea goes back to BPF (ECCV 2024) and CL-DETR (CVPR 2023). Those detect in every step; detecting once per task
(ours) makes a step cost what fine-tuning costs, and the labels can be looked at (``task_<t>/pseudo_labels.json``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torchvision.ops import box_iou

from incdet.data.records import DetectionDataset
from incdet.data.views import TaskView, TrainImage
from incdet.evaluation.predictions import Predictions, read_predictions, write_predictions
from incdet.evaluation.pseudo_labels import precision_and_recall
from incdet.methods.base import Method, TaskContext


class PseudoLabel(Method):
    """Teacher detections as targets, with a threshold per stage; uncertain ones are kept from being background."""

    DEFAULTS: ClassVar = {
        "SCORE_RPN": 0.5,  # a detection from here on is a proposal target
        "SCORE_ROI": 0.7,  # a detection from here on is a region target
        "SCORE_IGNORE": 0.3,  # from here on, a region on the detection is at least not background. Ours
        "DROP_IOU": 0.7,  # a detection that overlaps a labelled object more than this is dropped
    }
    needs_teacher = True

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._report: dict[str, Any] = {}

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        if context.teacher is None:
            return view
        found = self._detections(view, context)
        starts = np.searchsorted(found.image_index, np.arange(len(found.image_ids) + 1))
        rows = {name: slice(*starts[i : i + 2]) for i, name in enumerate(found.image_ids)}
        images, records, used = [], [], []
        for image in view.images:
            here = rows[image.record.image_id]
            boxes, scores, labels = found.boxes[here], found.scores[here], found.labels[here]
            keep = self._keep(image, boxes, scores, labels)
            images.append(self._taught(image, boxes[keep], scores[keep], labels[keep]))
            if image.source == "task":  # in a stored image old classes are labelled, not hidden
                sure = keep & (scores >= self.cfg.SCORE_ROI)
                used.append((boxes[sure], labels[sure]))
                records.append(image.record)
        self._report = precision_and_recall(records, context.dataset.classes, used, context.task.old)
        return replace(view, images=tuple(images))

    def report(self) -> dict[str, Any]:
        return {"pseudo_labels": self._report} if self._report else {}

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

    def _keep(self, image: TrainImage, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which detections say something new: scored high enough, of an unlabelled class, not on a labelled object."""
        keep = scores >= min(self.cfg.SCORE_IGNORE, self.cfg.SCORE_RPN, self.cfg.SCORE_ROI)
        keep &= ~np.isin(labels, list(image.labelled))
        if len(image.boxes) and len(boxes):
            overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(image.boxes)).amax(dim=1).numpy()
            keep &= overlap <= self.cfg.DROP_IOU
        return keep

    def _taught(self, image: TrainImage, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> TrainImage:
        return replace(
            image,
            boxes=np.concatenate([image.boxes, boxes]),
            labels=np.concatenate([image.labels, labels]),
            weights=np.concatenate([image.weights, np.ones(len(boxes), np.float32)]),
            use_rpn=np.concatenate([image.use_rpn, scores >= self.cfg.SCORE_RPN]),
            use_roi=np.concatenate([image.use_roi, scores >= self.cfg.SCORE_ROI]),
        )
