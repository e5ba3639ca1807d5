"""MMA: modelling the missing annotations (Cermelli et al., CVPRW 2022).

Unlabelled old objects make the background of the new images, as new objects made that of the old ones. No label is
written: the classification loss and the distillation count as background whatever may be hidden in it, and the
proposal network keeps to the old detector where that was surer. There is no term on features.
"""

from __future__ import annotations

from typing import ClassVar

from fvcore.common.config import CfgNode
from torch import Tensor

from incdet.errors import ConfigError
from incdet.losses.distillation import ilod_boxes, one_sided_proposals, student_old_deltas
from incdet.losses.unbiased import unbiased_classification, unbiased_distillation
from incdet.methods.base import Step, TaskContext
from incdet.methods.faster_ilod import FasterIlod
from incdet.structures import RegionOutputs
from incdet.tasks import TaskSpec


class Mma(FasterIlod):
    """Unbiased classification and distillation, on the regions and with the proposal term of Faster ILOD."""

    DEFAULTS: ClassVar = {
        "WEIGHT": None,  # of the distillation on regions; None = by the number of new classes, see ``weight``
        "WEIGHT_RPN": 1.0,  # release
        "BOXES": "teacher",  # teacher, as below; or student: of its sampled regions, which costs no second pass. Ours
        "REGIONS": 64,  # per image, drawn at random ...
        "CANDIDATES": 128,  # ... among this many of the highest objectness (release)
        "BOX_MARGIN": 0.1,  # anchors whose objectness logit fell by more than this have their box distilled (release)
        "INIT_FROM_BACKGROUND": False,  # new classes start as parts of the background; off in the released runs
    }
    replaces = ("loss_cls",)

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if not isinstance(node.WEIGHT, int | float | None):
            expected = "a number, or None to follow the number of new classes"
            raise ConfigError(f"{self.key('WEIGHT')}: expected {expected}, got {node.WEIGHT!r}.")

    def begin_task(self, context: TaskContext) -> None:
        # A task's second life begins it again; what it had learned is restored after this.
        if self.cfg.INIT_FROM_BACKGROUND and context.task.old:
            context.student.start_from_background(context.task.num_new)

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        old, sampled = step.task.num_old, step.student.regions
        if sampled.labels is None or sampled.weights is None:
            raise ValueError("MMA needs regions that were sampled with targets")
        proposals = one_sided_proposals(step.student.images, step.teacher.images, self.cfg.BOX_MARGIN)
        return {
            "loss_cls": unbiased_classification(sampled.logits, sampled.labels, sampled.weights, old),
            **self.distil_regions(*self.regions(step.student, step.teacher), step.task),
            "loss_distill_rpn": self.cfg.WEIGHT_RPN * proposals,
        }

    def distil_regions(self, student: RegionOutputs, teacher: RegionOutputs, task: TaskSpec) -> dict[str, Tensor]:
        """The terms on the same regions through both detectors."""
        weight, deltas = self.weight(task.num_new), student_old_deltas(student.deltas, task.num_old)
        return {
            "loss_distill_cls": weight * unbiased_distillation(student.logits, teacher.logits),
            "loss_distill_box": weight * ilod_boxes(deltas, teacher.deltas),
        }

    def weight(self, num_new: int) -> float:
        """The released runs weigh 1 or 2 new classes with 1, 5 with 0.5 and 10 with 0.1; in between is ours."""
        if self.cfg.WEIGHT is not None:
            return self.cfg.WEIGHT
        return 1.0 if num_new <= 2 else 0.5 if num_new <= 5 else 0.1
