"""Replay: keep a few images of every class and mix them into each batch.

An old image holds new objects that nobody labelled when it was stored. Its annotation says which classes are labelled
in it, so that ``METHODS: [replay, pseudo_label]`` can treat the others as unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode

from incdet.data.views import TaskView
from incdet.errors import ConfigError
from incdet.methods.base import Method, RegionReading, TaskContext
from incdet.randomness import derive_seed
from incdet.replay.memory import Exemplar, load_memory, save_memory, stored_images
from incdet.replay.nearest_mean import NearestMean, class_means, load_means, save_means
from incdet.replay.selection import RULES, class_features, rank_balanced, rank_herding, rank_random

READINGS = ("head", "nearest_mean")


class Replay(Method):
    """Stored images of the old classes, a fixed share of every batch."""

    DEFAULTS: ClassVar = {
        "IMAGES_PER_CLASS": 10,  # iOD, ORE and OW-DETR keep 10
        "BUDGET": 0,  # above 0: images in all, shared equally by the seen classes, instead of IMAGES_PER_CLASS
        "SELECTION": "random",  # random, class_balanced or herding
        "SHARE": 0.25,  # of each batch that is drawn from the memory; None = as they fall. Ours
        "READING": "head",  # or nearest_mean: of a classifier's features, by the means of the stored images (iCaRL)
    }
    works_on: ClassVar[tuple[str, ...]] = ("detection", "classification", "multi_label")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._reading = node.get("READING", "head")  # methods for detection alone have no such key
        # Refused now, not after the first task has been learned.
        for key, value, known in (("SELECTION", node.SELECTION, RULES), ("READING", self._reading, READINGS)):
            if value not in known:
                raise ConfigError(f"{self.key(key)}: expected one of {', '.join(known)}, got {value!r}.")

    def check(self, cfg: CfgNode) -> None:
        one_label = cfg.TASK == "classification" and not cfg.MODEL.CLASSIFIER.MULTI_LABEL
        if self._reading == "nearest_mean" and not one_label:
            raise ConfigError(
                f"{self.key('READING')}: nearest_mean gives every image one class and knows no background. Set it to "
                "head, or TASK to classification and MODEL.CLASSIFIER.MULTI_LABEL to false."
            )

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(slot for slot in super().slots if slot != "read_out" or self._reading == "nearest_mean")

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        stored = tuple(stored_images(self._load(context)))
        return replace(view, images=view.images + stored, memory_share=self.cfg.SHARE if stored else None)

    def end_task(self, context: TaskContext) -> None:
        if context.is_main:
            self.keep(context, self.exemplars(context))

    def keep(self, context: TaskContext, exemplars: Sequence[Exemplar]) -> None:
        """Make these the memory, and what they are read by."""
        save_memory(context.run_folder / "memory", exemplars)
        if self._reading == "nearest_mean":
            images = stored_images(exemplars)
            features = context.features(context.student, images, "class means")
            save_means(context.task_folder, class_means(images, features, context.task.seen), context.task.seen)

    def read_out(self, folder: Path) -> RegionReading | None:
        return NearestMean(load_means(folder)) if self._reading == "nearest_mean" else None

    def report(self) -> dict[str, Any]:
        return {"reading": self._reading} if self._reading != "head" else {}

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
