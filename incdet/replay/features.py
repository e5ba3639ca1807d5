"""A store of region features: the newest regions of every class, as the box head takes them, and what they should give.

Kept in the run's ``memory`` from task to task. Its regions come from detectors of different times, so old ones are not
what the current detector would pool; only the layers after the pooling can be trained on them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from fvcore.common.config import CfgNode
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from incdet.data.loader import train_loader
from incdet.data.views import TaskView
from incdet.errors import CheckpointError
from incdet.files import write_atomic
from incdet.randomness import derive_seed, seed_torch
from incdet.replay.selection import rank_random
from incdet.structures import RegionOutputs


class StoredRegions(NamedTuple):
    """What is kept of n regions; shapes as in ``RegionOutputs``."""

    pooled: Tensor  # half precision: half the memory. Ours
    labels: Tensor
    boxes: Tensor
    delta_targets: Tensor
    weights: Tensor


class FeatureStore:
    """The newest ``per_class`` regions of each class, on the CPU."""

    def __init__(self, per_class: int) -> None:
        self.per_class = per_class
        self._rows: dict[int, deque[StoredRegions]] = {}  # of one region each, oldest first

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def add(self, regions: RegionOutputs) -> None:
        """Store objects' regions: of each image and class one, at random, lest one image's fill the store (ours).

        Args:
            regions: sampled with targets; background and ignored ones are passed over.
        """
        if regions.labels is None:
            raise ValueError("a feature store needs regions that were sampled with targets")
        labels, images = regions.labels.cpu(), regions.image_index.cpu()
        rows = torch.where((labels >= 0) & (labels < regions.logits.shape[1] - 1))[0]
        rows = rows[torch.randperm(len(rows))]
        chosen = list(
            dict(zip(zip(images[rows].tolist(), labels[rows].tolist(), strict=True), rows, strict=True)).values()
        )
        if chosen:
            self._extend(_select(regions, torch.stack(chosen).to(regions.labels.device)))

    @torch.no_grad()
    def fill(self, detector: Any, view: TaskView, cfg: CfgNode) -> None:
        """Store regions of a task's new classes as a detector pools them now, from up to ``per_class`` images of each.

        Args:
            detector: that has learned the task (``backends.base.Detector``).
            view: what the task may see.
            cfg: of the task: its seed, and the size of a batch.
        """
        seed = derive_seed(cfg.SEED, "features", view.task.index)
        generator = torch.Generator().manual_seed(seed)
        ranked = [rank_random(view.images, label, generator) for label in view.task.new_labels]
        picked = sorted({position for positions in ranked for position in positions[: self.per_class]})
        some = replace(view, images=tuple(view.images[i] for i in picked), memory_share=None)
        batches = range(math.ceil(len(some) / cfg.SOLVER.IMS_PER_BATCH))
        device = next(detector.parameters()).device
        seed_torch(seed)  # regions are sampled by the global generator
        with detector.evaluating():
            for batch in tqdm(train_loader(some, cfg, batches), desc="features", leave=False):
                self.add(detector.region_pass(detector.image_pass(batch.to(device))))

    def regions(self) -> StoredRegions:
        """Everything in the store, class by class.

        Raises:
            ValueError: the store is empty.
        """
        if not len(self):
            raise ValueError("the feature store is empty")
        rows = [row for _, rows in sorted(self._rows.items()) for row in rows]
        return StoredRegions(*(torch.cat(part) for part in zip(*rows, strict=True)))

    def state_dict(self) -> dict[str, Tensor]:
        """All regions as tensors by name; none where the store is empty."""
        return self.regions()._asdict() if len(self) else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold what ``state_dict`` gave, and nothing else."""
        self._rows.clear()
        if state:
            self._extend(StoredRegions(**state))

    def save(self, path: Path) -> None:
        """Write the store as one file, whole or not at all."""
        write_atomic(path, safetensors.torch.save({k: v.contiguous() for k, v in self.state_dict().items()}))

    def load(self, path: Path, num_classes: int) -> None:
        """Read the first ``num_classes`` classes of a file; one that is absent is empty.

        Raises:
            CheckpointError: the file is damaged or no feature store.
        """
        if not path.exists():
            return
        try:
            state = safetensors.torch.load_file(path)
            known = state["labels"] < num_classes if state else None
            self.load_state_dict({name: value[known] for name, value in state.items()})
        except (OSError, SafetensorError, KeyError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"{path} cannot be read as a store of region features ({type(error).__name__}: {error}). Delete it to "
                "go on without the old classes' features, or begin the run in another OUTPUT_DIR."
            ) from error

    def _extend(self, regions: StoredRegions) -> None:
        for row in range(len(regions.labels)):
            # A clone, for a view would keep all regions alive.
            one = StoredRegions(*(part[row : row + 1].clone() for part in regions))
            self._rows.setdefault(int(one.labels), deque(maxlen=self.per_class)).append(one)


def _select(regions: RegionOutputs, rows: Tensor) -> StoredRegions:
    parts = {name: getattr(regions, name)[rows].detach().cpu() for name in StoredRegions._fields}
    return StoredRegions(**{**parts, "pooled": parts["pooled"].half()})
