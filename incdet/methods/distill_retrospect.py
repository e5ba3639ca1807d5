"""Distillation and retrospection (Hou et al., Lifelong Learning via Progressive Distillation and Retrospection,
ECCV 2018).

A student may have several teachers. An *expert* first learns the new classes alone, with nothing to remember; its
softened answers then teach the student's new head in the labels' place (*progressive distillation*). The old detector's
teach the old heads, on the new images and on a few stored ones (*retrospection*), whose labels are not used for that.

In detection an answer is the class of a sampled region, and the background competes in both heads; boxes and proposals
follow the labels, those of the stored images too (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from incdet.interim import train_interim
from incdet.losses.task_heads import head_distillation, head_pairs, task_logits
from incdet.methods.base import Step, TaskContext
from incdet.methods.lwf import old_heads
from incdet.methods.replay import Replay
from incdet.structures import Target


class DistillRetrospect(Replay):
    """An expert teaches the new classes, the old detector the old ones, on new images and on stored ones."""

    # The paper's values are not at hand. Two third-party versions have TAU_EXPERT 2, TAU_OLD 2 (the defaults), and
    # TAU_EXPERT 1, TAU_OLD 2, WEIGHT_RETROSPECTION 2; the second also starts the new head as the expert's.
    DEFAULTS: ClassVar = {
        **Replay.DEFAULTS,
        "TAU_EXPERT": 2.0,  # temperature of the expert's answers
        "TAU_OLD": 2.0,  # ... and of the old detector's
        "WEIGHT_RETROSPECTION": 1.0,
        "EXPERT_ITERATIONS": None,  # of the expert's training; None = as many as the task's
    }
    needs_teacher = True
    replaces = ("loss_cls",)
    works_on: ClassVar[tuple[str, ...]] = ("detection", "classification")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._expert: Any = None
        self._heads: list[range] = []

    def begin_task(self, context: TaskContext) -> None:
        if context.teacher is not None:
            self._expert = train_interim(context.student, context.view, context.train, self.cfg.EXPERT_ITERATIONS)
            self._heads = old_heads(context)

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        student, old = step.student.regions, step.teacher.regions.logits
        expert = step.look(self._expert).regions.logits
        stored = was_stored(step.batch.targets or (), step.task.num_old).to(old.device)[student.image_index]
        new = task_logits(student.logits, step.task.new_labels, step.task.num_seen)
        retrospection = self._preservation(student.logits[stored], old[stored])
        return {
            "loss_cls": head_distillation(new[~stored], expert[~stored], self.cfg.TAU_EXPERT),
            "loss_preservation": self._preservation(student.logits[~stored], old[~stored]),
            "loss_retrospection": self.cfg.WEIGHT_RETROSPECTION * retrospection,
        }

    def _preservation(self, student: Tensor, old: Tensor) -> Tensor:
        """How far the old heads are from the old detector's, summed over them, averaged over the regions."""
        pairs = head_pairs(student, old, self._heads)
        return torch.stack([head_distillation(*pair, self.cfg.TAU_OLD) for pair in pairs]).sum()


def was_stored(targets: Sequence[Target], num_old: int) -> Tensor:
    """Which images (N,) come from the memory: the task's have a new class labelled, stored ones only old ones."""
    return torch.tensor([t.labelled is not None and max(t.labelled, default=num_old) < num_old for t in targets])
