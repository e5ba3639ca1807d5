"""MAS: parameters that the detector's answers depend on stay where they are (Aljundi et al., ECCV 2018).

After a task, the importance of a parameter is how strongly it moves the squared length of the outputs,
``|d ||F(x)||^2 / d theta|``, averaged over images; no label is asked. In later tasks a parameter pays its importance
for the square of its distance from where the task before left it. Importances add up over the tasks.

The release takes the absolute gradient of a batch's sum; here every image has its own, as in the paper. (FACIL's
version takes the norm instead of its square, and half of the old importance and half of the new.)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from incdet.importance import (
    Anchors,
    add_importance,
    draw,
    load_importance,
    measure,
    own_logits,
    save_importance,
    shared_parameters,
)
from incdet.methods.base import Method, Pass, Step, TaskContext
from incdet.randomness import derive_seed

FILE = "mas.safetensors"


class Mas(Method):
    """A quadratic penalty, weighted by how much the outputs' squared length depends on each parameter."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 1.0,  # lambda (release)
        "IMAGES": 1000,  # of the task at most, drawn at random. Ours; the paper takes all
    }
    works_on = ("detection", "classification")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._anchors: Anchors | None = None

    def begin_task(self, context: TaskContext) -> None:
        earlier = self._earlier(context)
        rate = context.cfg.SOLVER.BASE_LR
        self._anchors = Anchors(context.student, earlier, self.cfg.WEIGHT, rate) if earlier else None

    def losses(self, step: Step) -> dict[str, Tensor]:
        if self._anchors is None:
            return {}
        return {"loss_mas": self._anchors.penalty(step.student.detector)}

    def end_task(self, context: TaskContext) -> None:
        task, multi_head = context.task, context.cfg.MODEL.CLASSIFIER.MULTI_HEAD

        def squared_length(one: Pass) -> Tensor:
            """Of an image's logits; of the mean sampled region's in detection (ours)."""
            logits = own_logits(one.regions.logits, task.num_old, multi_head)
            return logits.square().sum(dim=1).mean()

        images = draw(context.view.images, self.cfg.IMAGES, derive_seed(context.cfg.SEED, "mas", task.index))
        passes = context.passes(context.student, images, "importance")
        new = measure(shared_parameters(context.student), passes, squared_length, torch.abs, context.average)
        if context.is_main:
            save_importance(context.task_folder / FILE, add_importance(self._earlier(context), new))

    def _earlier(self, context: TaskContext) -> dict[str, Tensor]:
        """The importances that the task before kept; none before the first."""
        if not context.task.old:
            return {}
        return load_importance(context.run_folder / f"task_{context.task.index - 1}" / FILE)
