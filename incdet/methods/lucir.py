"""LUCIR: learning a unified classifier incrementally by rebalancing (Hou et al., CVPR 2019).

New classes come with many images and old ones with a few stored ones, which lets the new classes' weights grow long and
pull features towards them. So only directions count, by a cosine head; the rows of old classes stay; features keep the
direction that the old model gives them (less-forget); and stored images keep a margin between their own class and the
new ones that they resemble most. A new class's row begins as the mean direction of its images (imprinting).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from incdet.errors import ConfigError
from incdet.heads import CosineLinear
from incdet.losses.lucir import less_forget, less_forget_weight, margin_ranking
from incdet.methods.base import Step, TaskContext
from incdet.methods.replay import Replay
from incdet.replay.nearest_mean import mean_direction
from incdet.replay.selection import class_features


class Lucir(Replay):
    """Herded exemplars and a cosine head whose old rows are fixed, with less-forget and margin-ranking losses."""

    DEFAULTS: ClassVar = {
        **Replay.DEFAULTS,
        "IMAGES_PER_CLASS": 20,  # paper
        "SELECTION": "herding",
        "SHARE": None,  # stored and new images are one set (paper)
        "LESS_FORGET": 5.0,  # times sqrt(old classes / new classes); 5 for CIFAR-100, 10 for ImageNet (paper)
        "MARGIN": 0.5,  # of cosines (paper); so the next two
        "HARDEST": 2,  # new classes that an old image is kept away from
        "MARGIN_WEIGHT": 1.0,
    }
    needs_teacher = True
    works_on = ("classification",)

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._rows: nn.Parameter | None = None  # of the student's classifier, where some are fixed
        self._num_old = 0

    def check(self, cfg: CfgNode) -> None:
        super().check(cfg)
        if cfg.MODEL.CLASSIFIER.HEAD != "cosine":
            raise ConfigError(
                "METHODS: lucir compares directions, and a linear head's logits depend on lengths too. Expected "
                f"MODEL.CLASSIFIER.HEAD cosine, got {cfg.MODEL.CLASSIFIER.HEAD}: set it in the configuration file."
            )

    def begin_task(self, context: TaskContext) -> None:
        self._rows, self._num_old = None, context.task.num_old
        if context.teacher is not None:
            self._rows = context.student.classifier.weight
            self._imprint(context, self._rows)

    @torch.no_grad()
    def _imprint(self, context: TaskContext, rows: nn.Parameter) -> None:
        """New rows get their classes' mean direction and the old rows' mean length; a resumed task loads its own."""
        images = context.view.images
        features = context.features(context.student, images, "imprinting")
        length = rows[: self._num_old].norm(dim=1).mean()
        for label in context.task.new_labels:
            _, normalised = class_features(images, features, label)
            if normalised:
                rows[label] = length * context.average(mean_direction(normalised).to(rows))

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        task, student = step.task, step.student.regions
        cosines = cast("CosineLinear", step.student.detector.classifier).cosines(student.features).float()
        weight = less_forget_weight(self.cfg.LESS_FORGET, task.num_old, task.num_new)
        ranking = margin_ranking(
            cosines, cast("Tensor", student.labels), task.num_old, self.cfg.HARDEST, self.cfg.MARGIN
        )
        return {
            "loss_less_forget": weight * less_forget(student.features, step.teacher.regions.features),
            "loss_margin_ranking": self.cfg.MARGIN_WEIGHT * ranking,
        }

    def around_update(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        return nullcontext() if self._rows is None else self._old_rows_kept(self._rows)

    @contextmanager
    def _old_rows_kept(self, rows: nn.Parameter) -> Iterator[None]:
        """Restored, not frozen: they are one parameter with the new rows, and momentum and decay move them too."""
        before = rows.detach()[: self._num_old].clone()
        yield
        with torch.no_grad():
            rows[: self._num_old] = before
