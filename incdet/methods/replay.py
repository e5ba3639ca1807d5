"""Replay: keep a few images of every class and mix them into each batch.

An old image holds new objects that nobody labelled when it was stored. Its annotation says which classes are labelled
in it, so that ``METHODS: [replay, pseudo_label]`` can treat the others as unknown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from fvcore.common.config import CfgNode

from incdet.data.views import TaskView
from incdet.errors import ConfigError
from incdet.methods.base import Method, TaskContext
from incdet.randomness import derive_seed
from incdet.replay.memory import Exemplar, load_memory, save_memory, stored_images
from incdet.replay.selection import RULES, class_features, rank_balanced, rank_herding, rank_random


class Replay(Method):
    """Stored images of the old classes, a fixed share of every batch."""

    DEFAULTS: ClassVar = {
        "IMAGES_PER_CLASS": 10,  # iOD, ORE and OW-DETR keep 10
        "BUDGET": 0,  # above 0: images in all, shared equally by the seen classes, instead of IMAGES_PER_CLASS
        "SELECTION": "random",  # random, class_balanced or herding
        "SHARE": 0.25,  # of each batch that is drawn from the memory. Ours
    }
    works_on: ClassVar[tuple[str, ...]] = ("detection", "classification", "multi_label")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if node.SELECTION not in RULES:  # now, not after the first task has been learned
            name = type(self).__module__.rpartition(".")[2].upper()
            raise ConfigError(f"METHOD.{name}.SELECTION: expected one of {', '.join(RULES)}, got {node.SELECTION!r}.")

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        stored = tuple(stored_images(self._load(context)))
        return replace(view, images=view.images + stored, memory_share=self.cfg.SHARE if stored else None)

    def end_task(self, context: TaskContext) -> None:
        if context.is_main:
            save_memory(context.run_folder / "memory", self.exemplars(context))

    def exemplars(self, context: TaskContext) -> list[Exemplar]:
        """What of the old classes' images stays in the memory, and those chosen for the task's own classes."""
        task = context.task
        limit = self.cfg.IMAGES_PER_CLASS
        if self.cfg.BUDGET > 0:
            limit = max(self.cfg.BUDGET // task.num_seen, 1)
        kept = [e for e in self._load(context) if e.rank < limit and e.kept_for < task.num_old]
        return kept + self._choose(context, limit)

    def _load(self, context: TaskContext) -> list[Exemplar]:
        records = {record.image_id: record for record in context.dataset.images}
        return load_memory(context.run_folder / "memory", records)

    def _choose(self, context: TaskContext, limit: int) -> list[Exemplar]:
        """The images kept for the classes that the task has just taught."""
        rule = self.cfg.SELECTION
        images = context.view.images
        features = context.features(context.student, images, "herding") if rule == "herding" else []
        chosen = []
        for label in context.task.new_labels:
            generator = torch.Generator().manual_seed(derive_seed(context.cfg.SEED, "memory", label))
            if rule == "herding":
                positions, means = class_features(images, features, label)
                ranked = [positions[i] for i in rank_herding(means, limit)]
            else:
                ranked = (rank_random if rule == "random" else rank_balanced)(images, label, generator)
            chosen += [
                Exemplar(replace(images[position], source="memory"), label, rank)
                for rank, position in enumerate(ranked[:limit])
            ]
        return chosen
