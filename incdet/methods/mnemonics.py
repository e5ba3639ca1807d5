"""Mnemonics: exemplars are images whose pixels are learned, before they are stored (Liu et al., Mnemonics Training,
CVPR 2020).

Good exemplars are those from which the model learns what the task's images teach. After a task, a gradient step on its
exemplars is unrolled, and their pixels follow the gradient of the loss that the stepped model has on the task's images.
The old exemplars are adjusted too, one half against the other; then the model is fine-tuned on all of them.

The release does something else, ``VARIANT: release`` here: the model stays as it is, and the pixels of the new
exemplars move until the mean features of the classes tell the images apart. docs/reproducibility.md has what differs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from tqdm import tqdm

from incdet.data.loader import image_target, train_loader
from incdet.data.views import TaskView
from incdet.errors import ConfigError
from incdet.methods.base import TaskContext
from incdet.methods.replay import Replay
from incdet.randomness import derive_seed
from incdet.replay.learned import (
    Objective,
    PixelModel,
    bilevel_objective,
    draw,
    halved_rates,
    learn_pixels,
    prototype_objective,
)
from incdet.replay.memory import Exemplar, load_memory, pixels_of, save_memory, stored_images
from incdet.structures import Batch

DRAFT = "exemplars"  # in the task's folder: the next memory, until the model is kept


class Mnemonics(Replay):
    """Replay of exemplars whose pixels are learned, and a balanced fine-tuning on them."""

    DEFAULTS: ClassVar = {
        "VARIANT": "paper",  # or release: see above
        "EPOCHS": 50,  # of the images that the exemplars are to stand for. The release: 1
        "HALVE_EVERY": 10,  # epochs: the pixels' learning rate. The release: 1
        "PIXEL_LR": 0.001,  # a quarter of a grey level. Ours; the release: 1e-5 of normalised pixels, plain steps
        "INNER_STEPS": 1,  # unrolled. Ours, so the next two
        "INNER_LR": 0.05,
        "INNER_IMAGES": 64,  # exemplars at most that an unrolled step is taken on
        "FINETUNE_ITER": 300,  # balanced, after every task but the first; 0 = no fine-tuning. Ours, so the next
        "FINETUNE_LR": 0.01,
        "IMAGES_PER_CLASS": 20,  # the paper's; with the next four as in replay
        "BUDGET": 0,
        "SELECTION": "random",  # of the images that become exemplars. The release: herding
        "SHARE": 0.25,
        "READING": "head",
    }
    works_on: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if node.VARIANT not in ("paper", "release"):
            raise ConfigError(f"{self.key('VARIANT')}: expected paper or release, got {node.VARIANT!r}.")
        for key in ("HALVE_EVERY", "INNER_STEPS", "INNER_IMAGES"):
            if node[key] < 1:
                raise ConfigError(f"{self.key(key)}: expected 1 or more, got {node[key]}.")
        self._paper = node.VARIANT == "paper"
        self._report: dict[str, Any] = {}

    # ------------------------------------------------------------------ around a task

    def refine(self, context: TaskContext) -> None:
        """Learn the exemplars with the model as the task has left it, then fine-tune it on them."""
        if not context.task.old:  # its model may be shared with runs that know nothing of this method
            return
        draft = self._write_draft(context)
        if not self._paper or not self.cfg.FINETUNE_ITER:
            return
        view = TaskView(context.task, tuple(stored_images(_read(context, draft))))
        solver = {"MAX_ITER": self.cfg.FINETUNE_ITER, "BASE_LR": self.cfg.FINETUNE_LR, "WARMUP_ITERS": 0}
        context.train(context.student, view, "finetune", solver, ())

    def end_task(self, context: TaskContext) -> None:
        """Put the learned exemplars in the memory's place, now that the model is kept.

        Until here the memory is what the task began with, so that a killed one can be learned again. A second life
        finds the draft whole, or a memory that is the next one already.
        """
        draft = context.task_folder / DRAFT if context.task.old else self._write_draft(context)
        if not context.is_main:
            return
        if (draft / "memory.json").exists():
            self.keep(context, [_with_pixels(e) for e in _read(context, draft)])
            (draft / "memory.json").unlink()
        shutil.rmtree(draft, ignore_errors=True)

    def report(self) -> dict[str, Any]:
        return {"mnemonics": self._report} if self._report else {}

    # ------------------------------------------------------------------ pixels

    def _write_draft(self, context: TaskContext) -> Path:
        """The folder in which everything lies that the memory is to hold after the task."""
        chosen, num_old = [_with_pixels(e) for e in self.exemplars(context)], context.task.num_old
        old, new = [e for e in chosen if e.kept_for < num_old], [e for e in chosen if e.kept_for >= num_old]
        learner = _Learner(self.cfg, context, self._objective(context, old))
        learned_new = learner.from_task(new, () if self._paper else old)
        learned_old = learner.by_halves(old) if self._paper else old
        self._report = {"levels_new": _levels(new, learned_new), "levels_old": _levels(old, learned_old)}
        folder = context.task_folder / DRAFT
        if context.is_main:
            save_memory(folder, learned_old + learned_new)
        context.average(torch.zeros(()))  # nobody goes on before it is written
        return folder

    def _objective(self, context: TaskContext, old: Sequence[Exemplar]) -> Objective:
        model = PixelModel(context.student)
        if self._paper:
            return bilevel_objective(model.loss, model.trained, self.cfg.INNER_STEPS, self.cfg.INNER_LR)
        return prototype_objective(model.features, _batch(old, context), context.task.num_seen)


class _Learner:
    """Learns the pixels of a task's exemplars; every process does the same, and rounding is averaged away."""

    def __init__(self, settings: CfgNode, context: TaskContext, objective: Objective) -> None:
        self.settings, self.context, self.objective = settings, context, objective
        self.generator = torch.Generator().manual_seed(derive_seed(context.cfg.SEED, "mnemonics", context.task.index))

    def from_task(self, exemplars: Sequence[Exemplar], others: Sequence[Exemplar]) -> list[Exemplar]:
        """To stand for the task's images, and for some others beside them."""
        context = self.context
        view = replace(context.view, images=context.view.images + tuple(e.image for e in others))
        rates = self._rates(len(view))
        batches = train_loader(view, context.cfg, range(len(rates)))
        return self._learn(exemplars, (batch.to(_device(context)) for batch in batches), rates)

    def by_halves(self, exemplars: Sequence[Exemplar]) -> list[Exemplar]:
        """Each half to stand for the other (eq. 10); every second exemplar of a class is in the same half (ours)."""
        paired = {e.kept_for for e in exemplars if e.rank == 1}  # an only exemplar has no other half
        alone = [e for e in exemplars if e.kept_for not in paired]
        first, second = ([e for e in exemplars if e.kept_for in paired and e.rank % 2 == half] for half in (0, 1))
        first = self._against(first, second)
        return alone + first + self._against(second, first)

    def _against(self, exemplars: Sequence[Exemplar], others: Sequence[Exemplar]) -> list[Exemplar]:
        rates, queries = self._rates(len(others)), _batch(others, self.context)
        size = self.context.cfg.SOLVER.IMS_PER_BATCH
        return self._learn(exemplars, (draw(queries, size, self.generator) for _ in rates), rates)

    def _rates(self, images: int) -> list[float]:
        """The learning rate of each step, in epochs of so many images."""
        settings, steps = self.settings, math.ceil(images / self.context.cfg.SOLVER.IMS_PER_BATCH)
        return halved_rates(settings.PIXEL_LR, settings.EPOCHS, steps, settings.HALVE_EVERY)

    def _learn(self, exemplars: Sequence[Exemplar], queries: Iterable[Batch], rates: Sequence[float]) -> list[Exemplar]:
        if not exemplars:
            return []
        settings = self.settings
        count = settings.INNER_IMAGES if settings.VARIANT == "paper" else len(exemplars)
        hidden = not self.context.is_main
        shown = tqdm(queries, desc="exemplars", total=len(rates), leave=False, disable=hidden)
        start = _batch(exemplars, self.context)
        learned = learn_pixels(start, shown, self.objective, rates, count, self.generator)
        pairs = zip(exemplars, learned.images, strict=True)
        return [replace(exemplar, pixels=self.context.average(image).cpu()) for exemplar, image in pairs]


def _read(context: TaskContext, folder: Path) -> list[Exemplar]:
    return load_memory(folder, {record.image_id: record for record in context.dataset.images})


def _with_pixels(exemplar: Exemplar) -> Exemplar:
    return replace(exemplar, pixels=pixels_of(exemplar))


def _device(context: TaskContext) -> torch.device:
    return next(context.student.parameters()).device


def _batch(exemplars: Sequence[Exemplar], context: TaskContext) -> Batch:
    images = [pixels_of(exemplar) for exemplar in exemplars]
    return Batch(images, [image_target(e.image) for e in exemplars]).to(_device(context))


def _levels(before: Sequence[Exemplar], after: Sequence[Exemplar]) -> float:
    """By how many of 255 grey levels a pixel has changed, on average."""
    was = {e.image.record.image_id: pixels_of(e) for e in before}
    changes = [(pixels_of(e) - was[e.image.record.image_id]).abs().flatten() for e in after]
    return round(255 * torch.cat(changes).mean().item(), 3) if changes else 0.0
