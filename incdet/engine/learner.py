"""One training step: student, teacher and methods, from a batch to named losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial

import torch
from torch import Tensor, autograd, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from incdet.backends.base import Detector
from incdet.errors import DivergenceError, MethodError
from incdet.methods.base import Method, Pass, Step
from incdet.structures import Batch, ImageOutputs, RegionOutputs
from incdet.tasks import TaskSpec


class Sealed:
    """A batch that passes Lightning Fabric unopened.

    In mixed precision Fabric rounds every tensor that it finds in an argument, the boxes too, to 16 bits (and refuses
    frozen dataclasses). Autocast alone decides what is computed in which precision.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class Learner(nn.Module):
    """The module that is trained. Its only sub-module is the student.

    The teacher is kept out of the module tree: it is in no checkpoint, no optimiser and no DDP wrapper.
    """

    def __init__(self, student: Detector, teacher: Detector | None, methods: Sequence[Method], task: TaskSpec) -> None:
        super().__init__()
        self.student = student
        self.methods = list(methods)
        self.task = task
        # In the first task there is nothing to remember yet: only a method that changes it replaces anything.
        acting = [method for method in methods if task.old or method.changes_first_task]
        self.replaced = frozenset(name for method in acting for name in method.replaces)
        self.constraints: dict[str, Tensor] = {}  # of the last step: losses whose gradients bound the step
        self._teacher = (teacher,)
        self._shares: dict[int, bool] = {}  # which other detectors have the student's frozen stages

    @property
    def teacher(self) -> Detector | None:
        return self._teacher[0]

    def forward(self, batch: Batch | Sealed) -> dict[str, Tensor]:
        """The losses of a batch by name; the step minimises their sum."""
        if isinstance(batch, Sealed):
            batch = batch.batch
        for method in self.methods:
            batch = method.transform_batch(batch)
        images = self.student.image_pass(batch)
        regions = self.student.region_pass(images)
        for method in self.methods:
            method.relabel(images, regions)
        losses = self.student.losses(images, regions, skip=self.replaced)
        student = Pass(self.student, lambda: images, lambda: regions)
        look = partial(self._look, student)
        step = Step(self.task, batch, student, look(self.teacher) if self.teacher is not None else None, look)
        for method in self.methods:
            for name, value in method.losses(step).items():
                if name in losses:
                    raise MethodError(f"{type(method).__name__} returns the loss {name!r}, which is there already.")
                losses[name] = value
        self.constraints = {name: value for method in self.methods for name, value in method.constraints(step).items()}
        return losses

    @contextmanager
    def around_backward(self, average: Callable[[Tensor], Tensor], scale: float = 1.0) -> Iterator[None]:
        """Surround the backward pass, before clipping: in a step with constraints, the gradient is projected.

        Args:
            average: the mean over all processes.
            scale: what mixed precision multiplies the loss with; the gradients that are left behind have it, too.
        """
        if not self.constraints:
            yield
            return
        parameters = list(self._trained.values())
        # Before the backward pass, which frees what all losses have in common.
        rows = [
            parameters_to_vector(autograd.grad(loss * scale, parameters, retain_graph=True, materialize_grads=True))
            for loss in self.constraints.values()
        ]
        constraints = average(torch.stack(rows)) / scale
        self.constraints = {name: loss.detach() for name, loss in self.constraints.items()}
        yield
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        projected = self._projected(parameters_to_vector(gradients) / scale, constraints)
        vector_to_parameters(projected * scale, gradients)

    def _projected(self, gradient: Tensor, constraints: Tensor) -> Tensor:
        if not (gradient.isfinite().all() and constraints.isfinite().all()):
            return torch.full_like(gradient, torch.nan)  # mixed precision then skips the step and lowers its scale
        for method in self.methods:
            gradient = method.project(gradient, constraints)
        return gradient

    @contextmanager
    def around_update(self) -> Iterator[None]:
        """Let every method see the student's trained parameters before and after the optimiser step."""
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.around_update(self._trained))
            yield

    @cached_property
    def _trained(self) -> dict[str, nn.Parameter]:
        """By name; which ones train is settled when a task begins."""
        return {name: parameter for name, parameter in self.student.named_parameters() if parameter.requires_grad}

    def _look(self, student: Pass, detector: Detector) -> TeacherPass:
        """Another detector's view of what the student looks at."""
        return TeacherPass(detector, student, self.shares_frozen_stages(detector))

    def shares_frozen_stages(self, detector: Detector) -> bool:
        """Whether another detector can take the student's frozen features; compared once, for they stay."""
        if id(detector) not in self._shares:
            self._shares[id(detector)] = detector.shares_frozen_stages_with(self.student)
        return self._shares[id(detector)]


class TeacherPass(Pass):
    """A teacher's pass over the student's images and boxes, without gradients and only as far as methods ask."""

    def __init__(self, detector: Detector, student: Pass, share_frozen: bool) -> None:
        @torch.no_grad()
        def look() -> ImageOutputs:
            return detector.image_pass_like(student.images, share_frozen)

        super().__init__(detector, look, lambda: self.regions_on(student.regions.boxes_per_image(len(student))))

    @torch.no_grad()
    def regions_on(self, boxes: list[Tensor]) -> RegionOutputs:
        return super().regions_on(boxes)


def freeze_copy(detector: Detector) -> Detector:
    """A teacher: a copy in eval mode that computes no gradients."""
    return copy.deepcopy(detector).eval().requires_grad_(False)


def check_losses(losses: dict[str, Tensor], iteration: int) -> None:
    """Stop before a broken step reaches the weights.

    Raises:
        DivergenceError: a loss is not finite; all of them are named.
    """
    if not torch.isfinite(torch.stack(list(losses.values())).sum()):
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        raise DivergenceError(
            f"iteration {iteration}: a loss is not finite ({values}). Lower SOLVER.BASE_LR, lengthen "
            "SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED, and begin in another OUTPUT_DIR."
        )
