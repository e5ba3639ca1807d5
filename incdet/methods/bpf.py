"""BPF: bridge past and future (Mo et al., ECCV 2024).

The images of a task hold objects of the past and of the future, and neither is labelled. *Bridge the past*: what the
old detector is sure of is taught again. *Bridge the future*: what looks like an object, but is none that is known, is
kept from being background, in every task that another one follows. *Distillation with future*: the old detector and an
interim one, of the new classes alone, say together what a region is.

The release's values are those of its 10-10 configurations. What differs from it: docs/reproducibility.md.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from incdet.data.views import TrainImage
from incdet.errors import ConfigError
from incdet.interim import train_interim
from incdet.losses.bridge import (
    box_attention,
    bridged_boxes,
    bridged_classification,
    bridged_targets,
    largest_iou,
    likely_future,
)
from incdet.methods.base import Step, TaskContext
from incdet.methods.ilod import draw
from incdet.methods.pseudo_label import PseudoLabel, largest_overlap
from incdet.structures import IGNORED, ImageOutputs, RegionOutputs


class Bpf(PseudoLabel):
    """Weighted pseudo-labels, likely future objects that are no background, and distillation from two teachers."""

    DEFAULTS: ClassVar = {
        **PseudoLabel.DEFAULTS,
        "THRESHOLDS": "fixed",
        "SCORE_ROI": 0.75,  # release
        "DROP_IOU": 0.7,  # a detection that overlaps a labelled object more than this is dropped; ...
        "SURE_IOU": 0.4,  # ... at most this much, it counts in full; ...
        "UNSURE_WEIGHT": 0.3,  # ... in between, this much (release)
        "FUTURE_SHARE": 0.1,  # of an image's negatives, by objectness and by attention, that are excused; 0 = none
        "FUTURE_IOU": 0.1,  # ... if they overlap every target less than this (release)
        "WEIGHT": 0.15,  # of the distillation (the release's script for 10-10)
        "REGIONS": 64,  # per image, drawn at random ...
        "CANDIDATES": 128,  # ... among this many of the old detector's highest objectness (release)
        "NEW_IOU": 0.5,  # a region that overlaps a new object more than this is the interim detector's
        "INTERIM_ITERATIONS": None,  # of the interim detector's training; None = as many as the task's
    }

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        iterations = node.INTERIM_ITERATIONS
        if iterations is not None and (not isinstance(iterations, int) or iterations < 1):
            raise ConfigError(
                f"METHOD.BPF.INTERIM_ITERATIONS: expected a positive whole number, or None for the task's own, got "
                f"{iterations!r}."
            )
        self.changes_first_task = node.FUTURE_SHARE > 0
        self._has_future = False
        self._interim: Any = None

    def begin_task(self, context: TaskContext) -> None:
        self._has_future = self.cfg.FUTURE_SHARE > 0 and context.task.index < len(context.stream)
        if context.teacher is not None:
            self._interim = train_interim(context.student, context.view, context.train, self.cfg.INTERIM_ITERATIONS)

    # ------------------------------------------------------------------ bridge the past

    def weights(self, image: TrainImage, boxes: np.ndarray) -> np.ndarray:
        sure = largest_overlap(boxes, image.boxes) <= self.cfg.SURE_IOU
        return np.where(sure, 1.0, self.cfg.UNSURE_WEIGHT).astype(np.float32)

    # ------------------------------------------------------------------ bridge the future

    @torch.no_grad()
    def relabel(self, images: ImageOutputs, regions: RegionOutputs) -> None:
        if not self._has_future or images.anchor_labels is None or regions.labels is None:
            return
        rows = [torch.where(labels == 0)[0] for labels in images.anchor_labels]
        boxes = [anchors[row] for anchors, row in zip(images.anchors, rows, strict=True)]
        objectness = [logits[row] for logits, row in zip(images.objectness, rows, strict=True)]
        for labels, row, future in zip(
            images.anchor_labels, rows, self._future(images, boxes, objectness), strict=True
        ):
            labels[row[future]] = IGNORED

        negative = regions.labels == regions.logits.shape[1] - 1
        rows = [torch.where(negative & (regions.image_index == i))[0] for i in range(len(images.anchors))]
        boxes = [regions.boxes[row] for row in rows]
        objectness = [-rank(found, best_first) for found, best_first in zip(boxes, images.proposals, strict=True)]
        for row, future in zip(rows, self._future(images, boxes, objectness), strict=True):
            regions.labels[row[future]] = IGNORED

    def _future(self, images: ImageOutputs, boxes: list[Tensor], objectness: list[Tensor]) -> list[Tensor]:
        """Per image, which of the negatives' boxes (n, 4) may be objects of future classes."""
        attention = box_attention(images.features.values(), boxes, images.image_sizes).split([len(b) for b in boxes])
        share, far = self.cfg.FUTURE_SHARE, self.cfg.FUTURE_IOU
        known = [target.boxes for target in images.targets or ()]
        negatives = zip(boxes, objectness, attention, known, strict=True)
        return [likely_future(o, a, largest_iou(b, others), share, far) for b, o, a, others in negatives]

    # ------------------------------------------------------------------ distillation with future

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        num_old = step.task.num_old
        boxes = [draw(found[: self.cfg.CANDIDATES], self.cfg.REGIONS) for found in step.teacher.images.proposals]
        new = [target.boxes[target.labels >= num_old] for target in step.student.images.targets or ()]
        overlaps = [largest_iou(drawn, objects) for drawn, objects in zip(boxes, new, strict=True)]
        is_new = torch.cat(overlaps) > self.cfg.NEW_IOU
        student, old = step.student.regions_on(boxes), step.teacher.regions_on(boxes)
        interim = step.look(self._interim).regions_on(boxes)
        targets = bridged_targets(old.logits, interim.logits, is_new)
        distance = bridged_boxes(student.deltas, old.deltas, interim.deltas, is_new, num_old)
        return {
            "loss_bridge_cls": self.cfg.WEIGHT * bridged_classification(student.logits, targets),
            "loss_bridge_box": self.cfg.WEIGHT * distance,
        }


def rank(boxes: Tensor, ordered: Tensor) -> Tensor:
    """The position (n,) of each box (n, 4) among the ordered ones (m, 4); m where it is none of them."""
    same = (boxes[:, None] == ordered[None]).all(dim=2)
    return F.pad(same, (0, 1), value=True).int().argmax(dim=1)
