"""Prototypes: the classifier is taught again, of old classes by remembered features, of new ones by real features.

Forgetting sits in the region classifier (NSGP-RePRE, ICML 2025): a task has few old objects, or none, to teach its old
rows by. After each task a Gaussian of every class's region features is kept instead of images. After the next one,
the Gaussians are moved by what the task's own images say of the features' drift, and the classifier alone is trained on
samples of them, on the task's objects and on its background. Backbone, proposals and boxes stay.

FaCHD and IIKC (CVPR and ICLR 2026) end their tasks like this; neither paper nor code of them could be had, and the
settings are ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from incdet.align.base import LatentPairs
from incdet.align.baselines import RIDGE_STRENGTH
from incdet.align.drift import KINDS, fit_drift
from incdet.data.views import TaskView, TrainImage
from incdet.errors import ConfigError
from incdet.methods.base import DetectorLike, Method, TaskContext
from incdet.randomness import derive_seed
from incdet.replay.prototypes import Prototypes, load_prototypes, save_prototypes

FILE = "prototypes.safetensors"


class PrototypeReplay(Method):
    """Retrains the classifier on drift-compensated Gaussian prototypes of the old classes."""

    DEFAULTS: ClassVar = {
        "RANK": 32,  # main axes kept of each class's covariance. Ours
        "PRIOR": 10,  # regions' weight of the covariance shared by a task's classes, in each class's. Ours
        "DRIFT": "sdc",  # none, shift, ridge or sdc: how old prototypes move, incdet/align/drift.py. Ours
        "RIDGE_STRENGTH": RIDGE_STRENGTH,  # of ridge
        "BANDWIDTH": 0.15,  # of sdc, as a share of the median distance. Ours
        "BACKGROUND": 8,  # proposals per image that lie on no labelled object. Ours
        "OLD_SCORE": 0.5,  # ... those dropped that the old detector calls an object with this probability. Ours
        "LATENTS": 40000,  # regions at most. Ours
        "ITERATIONS": 300,  # of the classifier's training. Ours, so the next three
        "BATCH": 512,
        "BASE_LR": 0.003,
        "BACKGROUND_SHARE": 0.75,  # of each batch: what detectors are trained with
    }
    needs_teacher = True

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._images: Sequence[TrainImage] = ()
        self._report: dict[str, Any] = {}
        if node.DRIFT not in KINDS:  # now, not after the second task has been learned
            raise ConfigError(f"METHOD.PROTOTYPES.DRIFT: expected one of {', '.join(KINDS)}, got {node.DRIFT!r}.")
        if not 0 <= node.BACKGROUND_SHARE < 1:
            raise ConfigError(
                f"METHOD.PROTOTYPES.BACKGROUND_SHARE: expected a share from 0 to below 1, got {node.BACKGROUND_SHARE}."
            )

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        # With pseudo-labels in front of this method, the drift is measured on old objects too.
        self._images, self._report = view.images, {}
        return view

    def refine(self, context: TaskContext) -> None:
        if context.teacher is None:
            return
        began = time.perf_counter()
        pairs = context.latent_pairs(self._images, self.cfg.BACKGROUND, self.cfg.LATENTS)
        collected = time.perf_counter()
        old = self._moved(context, pairs)
        self._retrain(context, old, pairs)
        if context.is_main:
            self._keep(context, old.joined(self._fit(context, pairs)))
        self._report |= {
            "latents": len(pairs.labels),
            "relative_drift": round(pairs.relative_drift().mean().item(), 4),
            "collect_seconds": round(collected - began, 1),
            "train_seconds": round(time.perf_counter() - collected, 1),
        }

    def end_task(self, context: TaskContext) -> None:
        if not context.is_main or (context.task_folder / FILE).exists():  # ``refine`` has written it
            return
        images = context.view.images
        if context.teacher is None:
            features = torch.cat(context.features(context.student, images, "prototypes"))
            labels = torch.cat([torch.from_numpy(image.labels) for image in images])
            used = torch.cat([torch.from_numpy(image.use_roi) for image in images])
            self._keep(context, self._fit(context, LatentPairs(features[used], features[used], labels[used])))
        else:
            pairs = context.latent_pairs(images, self.cfg.BACKGROUND, self.cfg.LATENTS)
            self._keep(context, self._moved(context, pairs).joined(self._fit(context, pairs)))

    def report(self) -> dict[str, Any]:
        return {"prototypes": {"drift": self.cfg.DRIFT, **self._report}} if self._report else {}

    # ------------------------------------------------------------------ the Gaussians

    def _fit(self, context: TaskContext, pairs: LatentPairs) -> Prototypes:
        """Those of the task's own classes."""
        return Prototypes.fit(pairs.new, pairs.labels, context.task.new_labels, self.cfg.RANK, self.cfg.PRIOR)

    def _moved(self, context: TaskContext, pairs: LatentPairs) -> Prototypes:
        """Those of the old classes, where the student has them now."""
        path = context.run_folder / f"task_{context.task.index - 1}" / FILE
        old = load_prototypes(path, context.task.old)
        return old.moved(fit_drift(self.cfg.DRIFT, pairs, self.cfg.RIDGE_STRENGTH, self.cfg.BANDWIDTH))

    def _keep(self, context: TaskContext, prototypes: Prototypes) -> None:
        save_prototypes(context.task_folder / FILE, prototypes, context.task.seen)

    # ------------------------------------------------------------------ the classifier

    def _retrain(self, context: TaskContext, old: Prototypes, pairs: LatentPairs) -> None:
        """Train the student's classifier; every process does the same, and rounding is averaged away."""
        classifier, rows = context.student.classifier, context.student.classifier_rows
        device = classifier.weight.device
        weight, bias = (nn.Parameter(p.detach().clone()) for p in (classifier.weight, classifier.bias))
        optimizer = torch.optim.SGD([weight, bias], lr=self.cfg.BASE_LR, momentum=0.9)
        generator = torch.Generator().manual_seed(derive_seed(context.cfg.SEED, "prototypes", context.task.index))
        for features, labels in self._batches(context, old, pairs, generator):
            logits = F.linear(features.to(device), weight, bias)[:, rows]
            loss = F.cross_entropy(logits, labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            classifier.weight.copy_(context.average(weight.detach()))
            classifier.bias.copy_(context.average(bias.detach()))

    def _batches(
        self, context: TaskContext, old: Prototypes, pairs: LatentPairs, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (n, D) and labels (n,): as many of each old as of each new class, and background."""
        task = context.task
        labels = self._taught_labels(context, pairs)
        order, counts = labels.argsort(stable=True), (labels + 1).bincount(minlength=task.num_seen + 2)[1:]
        starts = (labels < 0).sum() + counts.cumsum(0) - counts
        classes = torch.cat([old.counts, counts[task.num_old : task.num_seen]]).nonzero().flatten()
        num_background = round(self.cfg.BATCH * self.cfg.BACKGROUND_SHARE) if counts[task.num_seen] else 0
        background = torch.full((num_background,), task.num_seen)
        for _ in trange(self.cfg.ITERATIONS, desc="classifier", disable=not context.is_main, leave=False):
            drawn = torch.randint(len(classes), (self.cfg.BATCH - num_background,), generator=generator)
            wanted = torch.cat([classes[drawn], background])
            remembered = wanted < task.num_old
            seen = wanted[~remembered]
            places = (
                starts[seen] + (torch.rand(len(seen), generator=generator, dtype=torch.float64) * counts[seen]).long()
            )
            features = pairs.new.new_empty(len(wanted), pairs.new.shape[1])
            features[remembered] = old.sample(wanted[remembered], generator)
            features[~remembered] = pairs.new[order[places]]
            yield features, wanted

    def _taught_labels(self, context: TaskContext, pairs: LatentPairs) -> Tensor:
        """The label (R,) of each real region: a new class, the background, or -1 where it is not taught.

        Old objects are taught by their prototypes. Unlabelled ones lie among the background regions: where the old
        detector sees something, it is not taught as background.
        """
        teacher, task = cast("DetectorLike", context.teacher), context.task
        with torch.no_grad():
            logits, _ = teacher.predictor(pairs.old.to(teacher.classifier.weight.device))
        nothing = logits.softmax(dim=1)[:, -1].cpu() > 1 - self.cfg.OLD_SCORE
        labels = torch.where(pairs.labels >= task.num_old, pairs.labels, -1)
        return torch.where((pairs.labels < 0) & nothing, task.num_seen, labels)
