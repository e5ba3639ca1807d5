"""Faster ILOD: distil features, proposals and regions of the old detector (Peng, Zhao and Lovell, PRL 2020).

All terms but the region's are one-sided: where the student answers more strongly than the old detector, it may be
right about a new class, and costs nothing. Each is averaged over all levels of a pyramid together (ours; the original
has one level).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from incdet.losses.distillation import one_sided_features, one_sided_proposals
from incdet.methods.base import Pass, Step
from incdet.methods.ilod import Ilod, draw


class FasterIlod(Ilod):
    """ILOD's region terms on the old detector's best proposals, with one-sided feature and proposal terms."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 1.0,  # of the region terms (eq. 5; all weights are 1 in the release)
        "WEIGHT_FEATURE": 1.0,  # eq. 3
        "WEIGHT_RPN": 1.0,  # eq. 4
        "BOXES": "teacher",  # teacher, as below; or student: of its sampled regions (iOD), which costs no second pass
        "REGIONS": 64,  # per image, drawn at random ...
        "CANDIDATES": 128,  # ... among this many of the highest objectness
        "BOX_MARGIN": 0.1,  # anchors whose objectness logit fell by more than this have their box distilled (release)
    }

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        student, teacher = step.student.images, step.teacher.images
        pairs = [(student.features[level], teacher.features[level]) for level in student.features]
        features = sum(one_sided_features(*pair) for pair in pairs) / len(pairs)
        proposals = one_sided_proposals(student, teacher, self.cfg.BOX_MARGIN)
        return super().losses(step) | {
            "loss_distill_feature": self.cfg.WEIGHT_FEATURE * features,
            "loss_distill_rpn": self.cfg.WEIGHT_RPN * proposals,
        }

    def choose_boxes(self, teacher: Pass) -> list[Tensor]:
        return [draw(boxes[: self.cfg.CANDIDATES], self.cfg.REGIONS) for boxes in teacher.images.proposals]
