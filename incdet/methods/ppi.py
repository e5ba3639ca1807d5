"""PPI: projection as Pareto improvement (szrlee, course report, 2018).

The old detector says on the new images what every past task's classes should answer. How far the student is from that,
task by task, is not added to the loss; it bounds the step. What all classes share, everything below the classifier,
goes along the vector nearest to the new loss's gradient that moves away from no past task's answers. The classifier
has no such bound: it learns all tasks' answers together, and several times on every batch, so that the shared part is
asked only for what the classifier cannot do by itself.

Every task has its own columns of the classifier, and the labels are for the new task's: no new class competes with an
old one. ``[lwf, ppi]`` adds the old answers to the loss as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, autograd, nn
from torch.func import functional_call

from incdet.errors import ConfigError
from incdet.losses.task_heads import head_distillation, head_pairs, sigmoid_distillation
from incdet.methods.base import DetectorLike, Method, Step, TaskContext
from incdet.methods.lwf import new_head_loss
from incdet.optim import build_optimizer, learning_rate, set_learning_rate
from incdet.projection import project_onto_cone


class Ppi(Method):
    """The shared part moves away from no past task's answers; the classifier learns them with the new ones."""

    DEFAULTS: ClassVar = {
        "MARGIN": 0.0,  # paper; 1 in the release: whatever is violated, each old gradient is added at least once
        "TEMPERATURE": 1.0,  # of classes that compete (release)
        "SUB_STEPS": 3,  # of the classifier on each batch, the first of them together with the shared part (release: 3)
    }
    needs_teacher = True
    replaces: tuple[str, ...] = ("loss_cls",)
    works_on: ClassVar[tuple[str, ...]] = ("detection", "classification", "multi_label")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if node.SUB_STEPS < 1:
            raise ConfigError(
                f"{self.key('SUB_STEPS')}: expected at least one step of the classifier, got {node.SUB_STEPS}."
            )
        self._past: list[range] = []  # the labels of each past task

    def check(self, cfg: CfgNode) -> None:
        if "lwf" in cfg.METHODS:  # whose loss of the labels is the same
            self.replaces = ()

    def begin_task(self, context: TaskContext) -> None:
        self._past = [task.new_labels for task in context.stream.tasks[: context.task.index - 1]]
        self._student, self._solver, self._average = context.student, context.cfg.SOLVER, context.average
        self._optimizer = build_optimizer(self._solver, self._student.classifier)
        self._iteration = 0

    def old_losses(self, student: DetectorLike, logits: Tensor, teacher: Tensor) -> list[Tensor]:
        """How far logits (R, K), or (R, K + 1), are from the teacher's in each past task's columns."""
        distil: Callable[[Tensor, Tensor], Tensor] = sigmoid_distillation
        if not student.multi_label:
            distil = partial(head_distillation, temperature=self.cfg.TEMPERATURE)
        return [distil(*pair) for pair in head_pairs(logits, teacher, self._past)]

    # ------------------------------------------------------------------ the shared part

    def constraints(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        student = step.student
        logits = logits_of_fixed(student.detector, student.regions.features)
        losses = self.old_losses(student.detector, logits, step.teacher.regions.logits)
        return {f"constraint_task_{number}": loss for number, loss in enumerate(losses, start=1)}

    def project(self, gradient: Tensor, constraints: Tensor) -> Tensor:
        return project_onto_cone(gradient, constraints, self.cfg.MARGIN)

    # ------------------------------------------------------------------ the classifier

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        student, regions = step.student.detector, step.student.regions
        features = regions.features.detach().float()
        # For the sub-steps: the graph and the maps of the batch are not kept.
        self._regions = replace(
            regions, pooled=features, features=features, logits=regions.logits.detach(), deltas=regions.deltas.detach()
        )
        self._answers = step.teacher.regions.logits
        logits, _ = student.predictor(features)
        losses = {"loss_old_classifier": torch.stack(self.old_losses(student, logits, self._answers)).sum()}
        if self.replaces:
            losses["loss_cls"] = new_head_loss(student, regions, step.task.num_old)
        return losses

    @contextmanager
    def around_update(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        yield
        if self._past:
            set_learning_rate(self._optimizer, learning_rate(self._solver, self._iteration))
            self._iteration += 1
            for _ in range(self.cfg.SUB_STEPS - 1):
                self._sub_step()

    def _sub_step(self) -> None:
        """One more step of the classifier on the batch, the features as they were."""
        student = self._student
        logits, _ = student.predictor(self._regions.features)
        new = new_head_loss(student, replace(self._regions, logits=logits), self._past[-1].stop)
        loss = torch.stack([new, *self.old_losses(student, logits, self._answers)]).sum()
        weights = list(student.classifier.parameters())
        for weight, gradient in zip(weights, autograd.grad(loss, weights), strict=True):
            weight.grad = self._average(gradient)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self._iteration, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._iteration = state["iteration"]
        self._optimizer.load_state_dict(state["optimizer"])


def logits_of_fixed(detector: DetectorLike, features: Tensor) -> Tensor:
    """The logits of features (R, D) by a classifier that no gradient reaches."""
    weights = {name: weight.detach() for name, weight in detector.classifier.named_parameters()}
    return functional_call(detector.classifier, weights, (features,))[:, detector.classifier_rows].float()
