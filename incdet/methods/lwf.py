"""LwF: the answers that the old detector gives to the new images are kept (Li and Hoiem, Learning without Forgetting,
ECCV 2016 / TPAMI 2018).

No old image is needed. First the new classes' rows of the classifier learn alone, so that untaught rows do not pull at
the features (*warm-up*). Then everything learns together: the new classes from the labels, the old ones from the old
detector's answers, softened by a temperature.

The labels are for the new head alone, so a new object competes with no old class, with one head for all tasks as with
several. (If it does, the labels lower every old class's logit in every image, by a common shift that softened answers
do not see.) In detection an answer is the class of a sampled region, the background competes in every head, and boxes
and proposals follow the labels alone (ours). Where images carry several labels an answer is a sigmoid per class (PPI).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from incdet.errors import ConfigError
from incdet.losses.task_heads import head_distillation, head_pairs, sigmoid_distillation
from incdet.methods.base import DetectorLike, Method, Pass, Step, TaskContext
from incdet.structures import RegionOutputs

STAGE = "warmup"  # its folder in the task's


class Lwf(Method):
    """The old classes follow the old detector's softened answers to the new images."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 1.0,  # lambda_o
        "TEMPERATURE": 2.0,
        "WARMUP_ITER": 500,  # 0 = no warm-up. Ours; the paper's lasts until the new rows have converged
    }
    needs_teacher = True
    replaces = ("loss_cls",)
    works_on: ClassVar[tuple[str, ...]] = ("detection", "classification", "multi_label")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if not isinstance(node.WARMUP_ITER, int) or node.WARMUP_ITER < 0:
            raise ConfigError(
                f"{self.key('WARMUP_ITER')}: expected a whole number of iterations, 0 for no warm-up, got "
                f"{node.WARMUP_ITER!r}."
            )
        self._heads: list[range] = []  # the old labels that compete with each other
        self._fixed_rows: list[int] = []  # of the classifier, in the warm-up

    def begin_task(self, context: TaskContext) -> None:
        if context.teacher is None:
            return
        self._heads = old_heads(context)
        if self.cfg.WARMUP_ITER:
            with self._new_rows_alone(context):
                context.train(context.student, context.view, STAGE, {"MAX_ITER": self.cfg.WARMUP_ITER}, (self,))

    # ------------------------------------------------------------------ warm-up

    @contextmanager
    def _new_rows_alone(self, context: TaskContext) -> Iterator[None]:
        """Nothing trains but the classifier, and of its rows the new classes' only."""
        student, rows = context.student, context.student.classifier_rows
        new = {rows[label] for label in context.task.new_labels}
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        for parameter in student.classifier.parameters():
            parameter.requires_grad_(parameter.ndim > 0)  # a cosine head's scale belongs to all classes
        self._fixed_rows = sorted(set(rows) - new)
        yield
        self._fixed_rows = []
        for parameter in trained:
            parameter.requires_grad_(True)

    def around_update(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        return self._rows_kept(parameters.values()) if self._fixed_rows else nullcontext()

    @contextmanager
    def _rows_kept(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Restored, not frozen: they are one parameter with the new rows, and momentum and decay move them too."""
        before = [(parameter, parameter.detach()[self._fixed_rows]) for parameter in parameters]
        yield
        with torch.no_grad():
            for parameter, rows in before:
                parameter[self._fixed_rows] = rows

    # ------------------------------------------------------------------ all together

    def losses(self, step: Step) -> dict[str, Tensor]:
        if not step.task.old:
            return {}
        losses = {"loss_cls": new_head_loss(step.student.detector, step.student.regions, step.task.num_old)}
        if step.teacher is not None:  # there is none in the warm-up, where the old answers cannot change
            losses["loss_lwf"] = self.cfg.WEIGHT * self._distillation(step.student, step.teacher)
        return losses

    def _distillation(self, student: Pass, teacher: Pass) -> Tensor:
        """Summed over the old heads."""
        pairs = head_pairs(student.regions.logits, teacher.regions.logits, self._heads)
        if student.detector.multi_label:
            return torch.stack([sigmoid_distillation(*pair) for pair in pairs]).sum()
        return torch.stack([head_distillation(*pair, self.cfg.TEMPERATURE) for pair in pairs]).sum()


def old_heads(context: TaskContext) -> list[range]:
    """The old labels that compete with each other: of each task's head, or all of them."""
    if context.cfg.MODEL.CLASSIFIER.MULTI_HEAD:
        return [task.new_labels for task in context.stream.tasks[: context.task.index - 1]]
    return [range(context.task.num_old)]


def new_head_loss(detector: DetectorLike, regions: RegionOutputs, num_old: int) -> Tensor:
    """The base loss, with no old class among the rivals of a new one or of the background.

    Regions of an old class (a stored image, a pseudo-label) choose among all classes.
    """
    if regions.labels is not None:
        old = torch.arange(regions.logits.shape[1], device=regions.logits.device) < num_old
        absent = (regions.labels >= num_old)[:, None] & old
        # Not minus infinity: where a detector's classes have sigmoids, that times zero is not a number.
        regions = replace(regions, logits=regions.logits.masked_fill(absent, torch.finfo(regions.logits.dtype).min))
    return detector.region_losses(regions, skip=("loss_box_reg",))["loss_cls"]
