"""EWC: parameters that the detector's beliefs depend on stay where they are (Kirkpatrick et al., PNAS 2017).

After a task, a parameter's importance is its entry on the diagonal of the Fisher information: the expected square of
``d log p(y|x) / d theta``, with x from the task's images and y from the model's **own** distribution, one drawn for
each image (not the true label, which gives the "empirical Fisher"). In later tasks a parameter pays half its importance
for the square of its distance from where the task before left it.

The paper has one penalty per task, each around its own weights. Here the Fishers of all tasks add up around the last
weights, which already carry what the earlier ones said (Huszar, PNAS 2018; online EWC of Schwarz et al., ICML 2018,
with no decay).
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

FILE = "ewc.safetensors"


class Ewc(Method):
    """A quadratic penalty, weighted by the diagonal of the Fisher information."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 1e6,  # lambda. Ours, chosen on a held-out part of digits; the paper chooses one for each problem
        "IMAGES": 1000,  # of the task at most, drawn at random. Ours
    }
    works_on = ("detection", "classification")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._anchors: Anchors | None = None

    def begin_task(self, context: TaskContext) -> None:
        earlier = self._earlier(context)
        rate = context.cfg.SOLVER.BASE_LR
        self._anchors = Anchors(context.student, earlier, self.cfg.WEIGHT / 2, rate) if earlier else None

    def losses(self, step: Step) -> dict[str, Tensor]:
        if self._anchors is None:
            return {}
        return {"loss_ewc": self._anchors.penalty(step.student.detector)}

    def end_task(self, context: TaskContext) -> None:
        task, multi_head = context.task, context.cfg.MODEL.CLASSIFIER.MULTI_HEAD

        def drawn_likelihood(one: Pass) -> Tensor:
            return log_likelihood_of_draws(own_logits(one.regions.logits, task.num_old, multi_head))

        images = draw(context.view.images, self.cfg.IMAGES, derive_seed(context.cfg.SEED, "ewc", task.index))
        passes = context.passes(context.student, images, "importance")
        new = measure(shared_parameters(context.student), passes, drawn_likelihood, torch.square, context.average)
        if context.is_main:
            save_importance(context.task_folder / FILE, add_importance(self._earlier(context), new))

    def _earlier(self, context: TaskContext) -> dict[str, Tensor]:
        """The summed Fishers that the task before kept; none before the first."""
        if not context.task.old:
            return {}
        return load_importance(context.run_folder / f"task_{context.task.index - 1}" / FILE)


def log_likelihood_of_draws(logits: Tensor) -> Tensor:
    """Log-probability of labels that are drawn from the logits' own softmax, one per row.

    The rows' gradients are independent and have no mean, so the squared gradient of their sum over the root of their
    number is, in expectation, the mean of their Fishers: an image of many regions counts as one.

    Args:
        logits: (R, K).
    """
    log_p = logits.log_softmax(dim=1)
    drawn = torch.multinomial(log_p.detach().exp(), 1)
    return log_p.gather(1, drawn).sum() / len(logits) ** 0.5
