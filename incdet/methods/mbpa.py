"""MbPA: before an image is read, the classifier adapts to what the memory holds around it (Sprechmann et al.,
Memory-based Parameter Adaptation, ICLR 2018).

Training is not touched. A task leaves features of its images, with their labels, beside the model. At prediction each
image has a classifier of its own: a few gradient steps from the model's, on the stored neighbours of the image's
feature, and then it is thrown away. ELI moves the feature to the classifier; this moves the classifier to the feature.

The paper's features come from a network that is fixed or learns slowly. Here it learns on, so the stored ones are moved
by what the task's own images say of the drift (ours; ``DRIFT: none`` leaves them as they were stored).

Shapes: R queries, M keys, k neighbours of a query, D width of a feature, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.functional import one_hot

from incdet.align.baselines import RIDGE_STRENGTH
from incdet.align.drift import KINDS, fit_drift
from incdet.errors import ConfigError
from incdet.methods.base import Method, RegionReading, TaskContext
from incdet.randomness import derive_seed
from incdet.replay.selection import rank_random
from incdet.tensors import load_tensors, save_tensors

FILE = "keys.safetensors"
KIND = "keys"
_REMEDY = "It is written at the end of each task: learn that task again."
_POSITIVE = ("KEYS_PER_CLASS", "NEIGHBOURS", "EPSILON", "STEPS", "RATE", "PULL")


class Mbpa(Method):
    """Adapts the classifier to each image's neighbours in a memory of features, for this image alone."""

    DEFAULTS: ClassVar = {  # all ours: the paper's are not at hand
        "KEYS_PER_CLASS": 100,  # features stored
        "NEIGHBOURS": 64,
        "EPSILON": 1e-3,  # a neighbour's weight is 1 / (EPSILON + squared distance)
        "STEPS": 10,
        "RATE": 0.1,  # of the steps
        "PULL": 10.0,  # alpha_M: the smaller it is, the harder a classifier is pulled back to the model's
        "DRIFT": "ridge",  # none, shift, ridge or sdc: how old features move, incdet/align/drift.py
        "RIDGE_STRENGTH": RIDGE_STRENGTH,  # of ridge
        "BANDWIDTH": 0.15,  # of sdc, as a share of the median distance
        "LATENTS": 20000,  # images at most that the drift is measured on
    }
    needs_teacher = True  # for the drift alone: nothing of it is computed in training
    works_on: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._report: dict[str, Any] = {}
        for key in _POSITIVE:
            if node[key] <= 0:
                raise ConfigError(f"{self.key(key)}: expected a number above 0, got {node[key]}.")
        if node.DRIFT not in KINDS:
            raise ConfigError(f"{self.key('DRIFT')}: expected one of {', '.join(KINDS)}, got {node.DRIFT!r}.")

    def check(self, cfg: CfgNode) -> None:
        if cfg.MODEL.CLASSIFIER.HEAD != "linear":
            raise ConfigError(
                "METHODS: mbpa takes gradient steps of a linear classifier in closed form; MODEL.CLASSIFIER.HEAD is "
                f"{cfg.MODEL.CLASSIFIER.HEAD}. Set it to linear, or take another method."
            )

    def end_task(self, context: TaskContext) -> None:
        """Store features of the task's classes after those of the old ones, moved to where the model has them now."""
        if not context.is_main:
            return
        keys, labels = self._new_keys(context)
        if context.teacher is not None:
            old_keys, old_labels = self._old_keys(context)
            keys, labels = torch.cat([old_keys, keys]), torch.cat([old_labels, labels])
        stored = {"keys": keys.half(), "labels": labels}  # half the memory
        save_tensors(context.task_folder / FILE, KIND, stored, {"heads": list(context.student.heads)})
        size = sum(tensor.nbytes for tensor in stored.values())
        self._report = {"keys": len(keys), "bytes": size, "drift": self.cfg.DRIFT}

    def _new_keys(self, context: TaskContext) -> tuple[Tensor, Tensor]:
        """Features (M, D) of some images of each of the task's classes, in random order, and their labels (M,)."""
        images, picked, labels = context.view.images, [], []
        for label in context.task.new_labels:
            generator = torch.Generator().manual_seed(derive_seed(context.cfg.SEED, "keys", label))
            ranked = rank_random(images, label, generator)[: self.cfg.KEYS_PER_CLASS]
            picked += [images[position] for position in ranked]
            labels += [label] * len(ranked)
        return torch.cat(context.features(context.student, picked, "keys")), torch.tensor(labels)

    def _old_keys(self, context: TaskContext) -> tuple[Tensor, Tensor]:
        path = context.run_folder / f"task_{context.task.index - 1}" / FILE
        stored, _ = load_tensors(path, KIND, _REMEDY)
        keys = stored["keys"].float()
        if self.cfg.DRIFT != "none":
            pairs = context.latent_pairs(context.view.images, 0, self.cfg.LATENTS)
            keys = fit_drift(self.cfg.DRIFT, pairs, self.cfg.RIDGE_STRENGTH, self.cfg.BANDWIDTH)(keys)
        return keys, stored["labels"]

    def read_out(self, folder: Path) -> RegionReading | None:
        stored, notes = load_tensors(folder / FILE, KIND, _REMEDY)
        return LocalAdaptation(stored["keys"].float(), stored["labels"], notes["heads"], self.cfg)

    def report(self) -> dict[str, Any]:
        return {"mbpa": self._report} if self._report else {}


class LocalAdaptation(nn.Module):
    """Reads each feature by a classifier that is adapted to its neighbours. Fits a read-out's slot.

    Args:
        keys: (M, D).
        labels: (M,) of the keys.
        heads: how many classes each head has; classes compete with those of their own head only.
        settings: ``METHOD.MBPA``.
    """

    def __init__(self, keys: Tensor, labels: Tensor, heads: Sequence[int], settings: CfgNode) -> None:
        super().__init__()
        self.settings = settings
        head_of = torch.arange(len(heads)).repeat_interleave(torch.tensor(heads))
        self.keys: Tensor
        self.targets: Tensor
        self.rivals: Tensor
        self.register_buffer("keys", keys)
        self.register_buffer("targets", one_hot(labels, len(head_of)).to(keys.dtype))  # (M, K)
        self.register_buffer("rivals", head_of[labels, None] != head_of)  # (M, K) bool: of other heads

    @torch.no_grad()
    def forward(self, features: Tensor, predictor: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (R, K); no row depends on another row."""
        settings = self.settings
        # The fast way by a matrix product loses the small distances, which weigh most.
        distances = torch.cdist(features, self.keys, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest, rows = distances.topk(min(settings.NEIGHBOURS, len(self.keys)), dim=1, largest=False)
        weights = 1 / (settings.EPSILON + nearest)
        weights = weights / weights.sum(dim=1, keepdim=True)
        key_logits = predictor(self.keys)[0].masked_fill(self.rivals, -torch.inf)
        return predictor(features)[0] + adaptation(
            features, self.keys[rows], key_logits[rows], self.targets[rows], weights,
            settings.STEPS, settings.RATE, settings.PULL,
        )  # fmt: skip


def adaptation(
    queries: Tensor,
    keys: Tensor,
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    steps: int,
    rate: float,
    pull: float,
) -> Tensor:
    """How the logits (R, K) of queries change when a linear classifier takes gradient steps for each of them.

    The steps climb ``sum_k w_k log p(y_k | h_k, theta_x) - |theta_x - theta|^2 / (2 pull)`` from theta (the paper's
    local objective). They never leave the span of the neighbours, ``theta_x - theta = sum_k a_k (h_k, 1)^T``, so that
    only the ``a_k`` (R, k, K) are computed, and no copy of the weights is made.

    Args:
        queries: (R, D).
        keys: (R, k, D) the neighbours of each.
        logits: (R, k, K) theirs by theta; minus infinity where a class does not compete.
        targets: (R, k, K) their labels, one-hot.
        weights: (R, k) theirs.
        steps: how many.
        rate: of the steps.
        pull: alpha_M.
    """
    among = torch.einsum("rid,rjd->rij", keys, keys) + 1  # the bias is the weight of a feature that is always one
    to_query = torch.einsum("rid,rd->ri", keys, queries) + 1
    moved = torch.zeros_like(targets)
    for _ in range(steps):
        now = logits + torch.einsum("rij,rjc->ric", among, moved)
        moved = moved + rate * (weights.unsqueeze(2) * (targets - now.softmax(dim=2)) - moved / pull)
    return torch.einsum("ri,ric->rc", to_query, moved)
