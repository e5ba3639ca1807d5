"""FaCHD's distillation: the student's region features must still speak to the old detector's frozen head (CVPR 2026).

Other distillations pull the student's old logits to the teacher's, and their gradients reach the student's predictor,
where they compete with the new classes. Here the features themselves are asked: the teacher's predictor, which does not
train, decodes the student's features, and what it reads is to be what it read of its own. The student's predictor
learns from labels alone.

Neither the paper nor code of it could be had: this follows public notes on it, which give the idea and the weight.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from incdet.losses.distillation import ilod_boxes
from incdet.losses.frozen_head import decoded_classification
from incdet.methods.base import Method, Step


class FrozenHeadDistill(Method):
    """Region features distilled through the old detector's frozen predictor."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 20.0,  # alpha in the notes; of which divisor they do not say. Ours: the mean over sampled regions
    }
    needs_teacher = True

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        teacher = step.teacher.regions
        logits, deltas = step.teacher.detector.predictor(step.student.regions.features)
        return {
            "loss_frozen_head_cls": self.cfg.WEIGHT * decoded_classification(logits, teacher.logits),
            "loss_frozen_head_box": self.cfg.WEIGHT * ilod_boxes(deltas, teacher.deltas),
        }
