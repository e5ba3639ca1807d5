"""GEM: gradient episodic memory (Lopez-Paz & Ranzato, NeurIPS 2017).

A few images of every task are kept. They are not trained on: their losses, one for each past task, bound the step. It
goes along the vector nearest to the new images' gradient that raises none of them, to first order.

The stored images come with the batch, a fixed share of it, through the readers and the workers of all others. What is
left of their labels after ``relabel`` is nothing; the labels that they came with are kept for ``constraints``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from incdet.methods.base import Step, TaskContext
from incdet.methods.replay import Replay
from incdet.projection import project_onto_cone
from incdet.structures import IGNORED, ImageOutputs, RegionOutputs, Target


class Gem(Replay):
    """No step may raise the loss of a past task's stored images."""

    DEFAULTS: ClassVar = {
        **Replay.DEFAULTS,
        "IMAGES_PER_CLASS": 25,  # the release keeps 256 of a task's ten classes
        "SHARE": 0.5,  # of each batch that is drawn from the memory; the paper takes all of it in every step. Ours
        "MARGIN": 0.5,  # in any step that violates a constraint, each is added at least that often (release)
        "RIDGE": 1e-3,  # on the diagonal of the dual problem (release); with both 0 the projection is exact
    }
    works_on: ClassVar[tuple[str, ...]] = ("detection", "classification", "multi_label")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._past: list[range] = []  # the labels of each past task
        self._tasks: list[list[int]] = []  # per image, the past tasks that kept it
        self._labels: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)  # of the whole batch

    def begin_task(self, context: TaskContext) -> None:
        self._past = [task.new_labels for task in context.stream.tasks[: context.task.index - 1]]

    def relabel(self, images: ImageOutputs, regions: RegionOutputs) -> None:
        if not self._past or images.targets is None:
            return
        self._tasks = [self.kept_by(target) for target in images.targets]
        self._labels = images.anchor_labels, regions.labels, regions.label_sets
        new = torch.tensor([not tasks for tasks in self._tasks], device=regions.image_index.device)
        images.anchor_labels, regions.labels, regions.label_sets = self._labels_where(new, regions.image_index)

    def kept_by(self, target: Target) -> list[int]:
        """The past tasks whose classes are labelled in a stored image; none for an image of the task at hand."""
        labelled = target.labelled
        if not labelled or max(labelled) >= self._past[-1].stop:
            return []
        return [number for number, labels in enumerate(self._past) if not labelled.isdisjoint(labels)]

    def bounds(self) -> dict[str, Sequence[bool]]:
        """Which images of the batch each constraint is computed on, by its name."""
        return {
            f"constraint_task_{number + 1}": [number in tasks for tasks in self._tasks]
            for number in range(len(self._past))
        }

    def constraints(self, step: Step) -> dict[str, Tensor]:
        if not self._past:
            return {}
        detector, images, regions = step.student.detector, step.student.images, step.student.regions
        found = {}
        for name, chosen in self.bounds().items():
            keep = torch.tensor(chosen, device=regions.image_index.device)
            anchor_labels, labels, label_sets = self._labels_where(keep, regions.image_index)
            losses = detector.losses(
                replace(images, anchor_labels=anchor_labels), replace(regions, labels=labels, label_sets=label_sets)
            )
            found[name] = torch.stack(list(losses.values())).sum()
        return found

    def project(self, gradient: Tensor, constraints: Tensor) -> Tensor:
        return project_onto_cone(gradient, constraints, self.cfg.MARGIN, self.cfg.RIDGE)

    def _labels_where(self, keep: Tensor, image_index: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The batch's labels of anchors and of regions, where only some images (N,) teach anything."""
        anchor_labels, labels, label_sets = self._labels
        of_region = keep[image_index]
        return _only(anchor_labels, keep), _only(labels, of_region), _only(label_sets, of_region)


def _only(labels: Tensor | None, keep: Tensor) -> Tensor | None:
    """Labels (n,) or (n, m) of what ``keep`` (n,) picks; the others are ignored."""
    return None if labels is None else labels.masked_fill(~keep.view(-1, *[1] * (labels.ndim - 1)), IGNORED)
