"""ILOD: distil the old detector's region outputs (Shmelkov, Schmid and Alahari, ICCV 2017).

The original takes its proposals from EdgeBoxes, outside the detector; here they are the old detector's own (ours).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from incdet.errors import ConfigError
from incdet.losses.distillation import ilod_boxes, ilod_classification, student_old_deltas, student_old_logits
from incdet.methods.base import Method, Pass, Step
from incdet.structures import RegionOutputs


class Ilod(Method):
    """Logits and boxes of the old classes follow the old detector's, on its least background-like proposals."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 1.0,  # lambda in eq. 2
        "BOXES": "teacher",  # teacher, as below; or student: of its sampled regions (iOD), which costs no second pass
        "REGIONS": 64,  # per image, drawn at random ...
        "CANDIDATES": 128,  # ... among this many with the lowest background score
        "PROPOSALS": 256,  # of the old detector that are looked at. Ours
    }
    needs_teacher = True

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if node.BOXES not in ("teacher", "student"):
            raise ConfigError(f"{self.key('BOXES')}: expected teacher or student, got {node.BOXES!r}.")

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        old = step.task.num_old
        student, teacher = self.regions(step.student, step.teacher)
        logits, deltas = student_old_logits(student.logits, old), student_old_deltas(student.deltas, old)
        return {
            "loss_distill_cls": self.cfg.WEIGHT * ilod_classification(logits, teacher.logits),
            "loss_distill_box": self.cfg.WEIGHT * ilod_boxes(deltas, teacher.deltas),
        }

    def choose_boxes(self, teacher: Pass) -> list[Tensor]:
        """The old detector's proposals to distil on: per image (r, 4)."""
        proposals = [boxes[: self.cfg.PROPOSALS] for boxes in teacher.images.proposals]
        background = teacher.regions_on(proposals).logits.softmax(dim=1)[:, -1]
        chosen = []
        for boxes, score in zip(proposals, background.split([len(b) for b in proposals]), strict=True):
            candidates = boxes[score.argsort()[: self.cfg.CANDIDATES]]
            chosen.append(draw(candidates, self.cfg.REGIONS))
        return chosen

    def regions(self, student: Pass, teacher: Pass) -> tuple[RegionOutputs, RegionOutputs]:
        """The regions to distil on, as the student and as the teacher sees them."""
        if self.cfg.BOXES == "teacher":
            boxes = self.choose_boxes(teacher)
            return student.regions_on(boxes), teacher.regions_on(boxes)
        regions = student.regions
        rows = [draw(torch.where(regions.image_index == i)[0], self.cfg.REGIONS) for i in range(len(student))]
        return regions.select(torch.cat(rows)), teacher.regions_on([regions.boxes[r] for r in rows])


def draw(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` of the rows, at random."""
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]
