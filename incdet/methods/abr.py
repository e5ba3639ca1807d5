"""ABR: Augmented Box Replay (Liu et al., ICCV 2023).

A stored image is full of new objects that nobody labelled in it: the *foreground shift*. So only crops of old objects
are kept, and mixed into the new images, whose own objects stay labelled. In what is mixed both are positives; an old
object that the new image itself shows is unlabelled still, and for that there are the losses of MMA. The old detector's
features are distilled too, where it attends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from incdet.data.images import read_image
from incdet.errors import ConfigError
from incdet.losses.attention import attentive_distillation
from incdet.methods.base import TaskContext
from incdet.methods.mma import Mma
from incdet.randomness import derive_seed
from incdet.replay.boxes import BoxPlace, boxes_of, cut, load_boxes, update_boxes
from incdet.replay.mixing import fit, mixup, mosaic
from incdet.replay.selection import rank_herding, rank_mean
from incdet.structures import Batch, RegionOutputs, Target
from incdet.tasks import TaskSpec

RULES = ("mean", "random", "herding")


class Abr(Mma):
    """MMA with crops of old objects in the new images, and with attentive distillation of region features."""

    DEFAULTS: ClassVar = {
        **Mma.DEFAULTS,  # WEIGHT is the paper's alpha; the release weighs as MMA does
        "WEIGHT_RPN": 0.0,  # the release has MMA's term for ablations only
        "WEIGHT_ATTENTION": 1.0,  # beta; 0.5 for 10 and more new classes in the release
        "GAMMA": 1.0,  # of the attentions' own distance; 5 for 19+1 in the release
        "BUDGET": 2000,  # crops in all, shared equally by the seen classes and rounded up (paper)
        "SELECTION": "mean",  # mean, random or herding (release: mean)
        "MIN_SIZE": 70,  # objects with no side longer than these pixels are not stored (release)
        "MIXUP": 0.25,  # of the images have two crops blended in (release: mixup, mosaic, neither = 1 : 1 : 2)
        "MOSAIC": 0.25,  # of the images give way to four crops
    }

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if node.SELECTION not in RULES:
            expected = f"one of {', '.join(RULES)}"
            raise ConfigError(f"{self.key('SELECTION')}: expected {expected}, got {node.SELECTION!r}.")
        if node.BUDGET < 1:
            raise ConfigError(
                f"{self.key('BUDGET')}: expected at least 1 crop, got {node.BUDGET}. For the same losses and no "
                "replay set MIXUP and MOSAIC to 0; for MMA by the same schedule take METHODS [mma]."
            )
        if min(node.MIXUP, node.MOSAIC) < 0 or node.MIXUP + node.MOSAIC > 1:
            raise ConfigError(
                f"{self.key('MIXUP')} and MOSAIC are shares of the images: expected two that sum to at most 1, got "
                f"{node.MIXUP} and {node.MOSAIC}."
            )
        self._crops: list[list[Tensor]] = []  # of each old class that has some
        self._labels: list[int] = []  # of each of these
        self._flip = False
        self._report: dict[str, int] = {}

    # ------------------------------------------------------------------ memory

    def begin_task(self, context: TaskContext) -> None:
        super().begin_task(context)
        by_label: dict[int, list[Tensor]] = {}
        folder = context.run_folder / "memory" / "boxes"
        for box in load_boxes(folder) if context.task.old else []:
            by_label.setdefault(box.label, []).append(read_image(folder / box.file))
        self._labels, self._crops = list(by_label), list(by_label.values())
        self._flip = context.cfg.INPUT.RANDOM_FLIP == "horizontal"

    def end_task(self, context: TaskContext) -> None:
        if not context.is_main:
            return
        task, folder = context.task, context.run_folder / "memory" / "boxes"
        limit = math.ceil(self.cfg.BUDGET / task.num_seen)
        kept = [box for box in load_boxes(folder) if box.rank < limit and box.label < task.num_old]
        stored = update_boxes(folder, kept, dict(self._choose(context, limit)))
        labels = [box.label for box in stored]
        self._report = {name: labels.count(label) for label, name in enumerate(task.seen)}

    def _choose(self, context: TaskContext, limit: int) -> Iterator[tuple[int, Iterator[Tensor]]]:
        """For each class that the task has just taught, the crops to keep, best first."""
        images, rule = context.view.images, self.cfg.SELECTION
        features = [] if rule == "random" else context.features(context.student, images, "boxes")
        for label in context.task.new_labels:
            places = boxes_of(images, label, self.cfg.MIN_SIZE)
            seed = derive_seed(context.cfg.SEED, "boxes", label)
            ranked = [places[i] for i in self._rank(places, features, seed)[:limit]]
            yield label, (cut(images[place.image], place.box) for place in ranked)

    def _rank(self, places: Sequence[BoxPlace], features: Sequence[Tensor], seed: int) -> list[int]:
        """Positions in ``places``, best first."""
        if self.cfg.SELECTION == "random":
            return torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).tolist()
        if not places:
            return []
        rows = torch.stack([features[place.image][place.box] for place in places]).float()
        rows = torch.nn.functional.normalize(rows, dim=1)
        return rank_mean(rows) if self.cfg.SELECTION == "mean" else rank_herding(list(rows), len(rows))

    def report(self) -> dict[str, Any]:
        return {"stored_boxes": self._report} if self._report else {}

    # ------------------------------------------------------------------ replay

    def transform_batch(self, batch: Batch) -> Batch:
        if not self._crops or batch.targets is None:
            return batch
        pairs = [self._replay(*pair) for pair in zip(batch.images, batch.targets, strict=True)]
        images, targets = zip(*pairs, strict=True)
        return replace(batch, images=list(images), targets=list(targets))

    def _replay(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """An image with crops blended in, crops in its place, or itself."""
        draw = torch.rand(()).item()
        if draw < self.cfg.MIXUP:
            return mixup(image, target, [self._draw(image) for _ in range(2)])
        if draw < self.cfg.MIXUP + self.cfg.MOSAIC:
            return mosaic([self._draw(image) for _ in range(4)], image.shape[-2:])
        return image, target

    def _draw(self, image: Tensor) -> tuple[Tensor, int]:
        """A crop that fits an image, and its label.

        Every class is as likely as any other. The release fills classes that are short of crops with duplicates, and
        goes through all; this does the same on average.
        """
        row = int(torch.randint(len(self._labels), ()))
        pixels = self._crops[row][int(torch.randint(len(self._crops[row]), ()))]
        crop = fit(pixels.to(image.device).float() / 255, image.shape[-2:])
        # The loader flips images before they come here.
        return crop.flip(2) if self._flip and torch.rand(()) < 0.5 else crop, self._labels[row]

    # ------------------------------------------------------------------ losses

    def distil_regions(self, student: RegionOutputs, teacher: RegionOutputs, task: TaskSpec) -> dict[str, Tensor]:
        distance = attentive_distillation(student.pooled, teacher.pooled, self.cfg.GAMMA)
        return {
            **super().distil_regions(student, teacher, task),
            "loss_distill_attention": self.cfg.WEIGHT_ATTENTION * distance,
        }
