"""ILOD: distil the old detector's region outputs (Shmelkov, Schmid and Alahari, ICCV 2017).

The original takes its proposals from EdgeBoxes, outside the detector; here they are the old detector's own (ours).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from incdet.losses.distillation import ilod_boxes, ilod_classification, student_old_logits
from incdet.methods.base import Method, Pass, Step


class Ilod(Method):
    """Logits and boxes of the old classes follow the old detector's, on its least background-like proposals."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 1.0,  # lambda in eq. 2
        "REGIONS": 64,  # per image, drawn at random ...
        "CANDIDATES": 128,  # ... among this many with the lowest background score
        "PROPOSALS": 256,  # of the old detector that are looked at. Ours
    }
    needs_teacher = True

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        boxes = self.choose_boxes(step.teacher)
        student, teacher = step.student.regions_on(boxes), step.teacher.regions_on(boxes)
        old = step.task.num_old
        student_deltas = student.deltas if student.deltas.shape[1] == 1 else student.deltas[:, :old]
        classification = ilod_classification(student_old_logits(student.logits, old), teacher.logits)
        return {
            "loss_distill_cls": self.cfg.WEIGHT * classification,
            "loss_distill_box": self.cfg.WEIGHT * ilod_boxes(student_deltas, teacher.deltas),
        }

    def choose_boxes(self, teacher: Pass) -> list[Tensor]:
        """The regions to distil on: per image (r, 4)."""
        proposals = [boxes[: self.cfg.PROPOSALS] for boxes in teacher.images.proposals]
        background = teacher.regions_on(proposals).logits.softmax(dim=1)[:, -1]
        chosen = []
        for boxes, score in zip(proposals, background.split([len(b) for b in proposals]), strict=True):
            candidates = boxes[score.argsort()[: self.cfg.CANDIDATES]]
            chosen.append(draw(candidates, self.cfg.REGIONS))
        return chosen


def draw(boxes: Tensor, count: int) -> Tensor:
    """At most ``count`` of the boxes, at random."""
    return boxes[torch.randperm(len(boxes), device=boxes.device)[:count]]
