"""Batches of a task, as a function of the seed and the iteration alone.

A ``BatchPlan`` says which images make up iteration i; nothing is remembered between iterations. Resuming at i is
asking for the plan from i on, and any number of workers or processes draws the same images with the same augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from incdet.data.images import read_image
from incdet.data.transforms import Transform, build_transform
from incdet.data.views import TaskView, TrainImage
from incdet.errors import DataError
from incdet.randomness import derive_seed, seeded
from incdet.structures import Batch, Target


class BatchPlan:
    """Which images, with which random seed, belong to each iteration of a task.

    Every image is drawn once per epoch, in a new order each epoch. Where the view says so, a fixed share of each batch
    comes from the memory, so that the ratio of new to old images does not depend on how many of each there are.

    Args:
        view: the images.
        batch_size: over all processes.
        seed: of the run.
        group: a batch holds wide images only or tall images only, each as often as there are such, so that little is
            padded. Each shape then has epochs of its own.
    """

    def __init__(self, view: TaskView, batch_size: int, seed: int, group: bool = False) -> None:
        images = view.images
        everything = list(range(len(images)))
        memory = [i for i in everything if images[i].source == "memory"]
        tall = {i for i in everything if group and images[i].record.height > images[i].record.width}
        self.pools: list[tuple[tuple[list[int], list[int]], int]] = [(_parted(everything, tall), batch_size)]
        if memory and view.memory_share is not None:
            count = min(max(round(batch_size * view.memory_share), 1), batch_size - 1)
            fresh = [i for i in everything if images[i].source != "memory"]
            self.pools = [(_parted(fresh, tall), batch_size - count), (_parted(memory, tall), count)]
        wide = len(self.pools[0][0][0])
        self.shares = wide, wide + len(self.pools[0][0][1])
        self.key = (seed, "data", view.task.index)

    def batch(self, iteration: int) -> list[tuple[int, int]]:
        """(image index, augmentation seed) of each image of an iteration, over all processes."""
        shape, turn = self._turn(iteration)
        picks = []
        for number, (shapes, count) in enumerate(self.pools):
            # A memory without an image of this shape gives others.
            pool = shapes[shape] or shapes[1 - shape]
            key = (number,) if shape == 0 else (number, "tall")
            for position in range(turn * count, (turn + 1) * count):
                epoch, offset = divmod(position, len(pool))
                order = _permutation(len(pool), derive_seed(*self.key, *key, epoch))
                picks.append((pool[order[offset]], derive_seed(*self.key, "augment", *key, position)))
        return picks

    def _turn(self, iteration: int) -> tuple[int, int]:
        """Whether an iteration is wide (0) or tall (1), and how many of its kind came before: as even as can be."""
        wide, both = self.shares
        before, after = iteration * wide // both, (iteration + 1) * wide // both
        return (0, before) if after > before else (1, iteration - before)


def _parted(images: list[int], tall: set[int]) -> tuple[list[int], list[int]]:
    return [i for i in images if i not in tall], [i for i in images if i in tall]


@lru_cache(maxsize=8)
def _permutation(length: int, seed: int) -> list[int]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()


class _PlannedBatches:
    """A batch sampler: the part of each planned batch that one process takes."""

    def __init__(self, plan: BatchPlan, iterations: range, rank: int, world_size: int) -> None:
        self.plan, self.iterations, self.rank, self.world_size = plan, iterations, rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in self.iterations:
            yield self.plan.batch(iteration)[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self.iterations)


class _TrainSet(Dataset):
    def __init__(self, images: Sequence[TrainImage], transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target, str]:
        index, seed = key
        image = self.images[index]
        with seeded(seed):
            pixels, target = self.transform(read_image(image.record.path), image_target(image))
        return pixels, target, image.record.image_id


def image_target(image: TrainImage) -> Target:
    """What a task may see of an image, as tensors in the image's own pixels."""
    arrays = (image.boxes, image.labels, image.weights, image.use_rpn, image.use_roi)
    boxes, labels, weights, use_rpn, use_roi = map(torch.from_numpy, arrays)
    return Target(boxes, labels, weights, use_rpn, use_roi, image.labelled)


def collate(items: list[tuple[Tensor, Target, str]]) -> Batch:
    images, targets, ids = zip(*items, strict=True)
    return Batch(list(images), list(targets), list(ids))


def train_loader(
    view: TaskView, cfg: CfgNode, iterations: range, rank: int = 0, world_size: int = 1
) -> DataLoader[Batch]:
    """Batches for the given iterations of a task.

    Raises:
        DataError: the view has no image, or the batch cannot be shared among the processes.
    """
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    if not view.images:
        raise DataError(f"task {view.task.index} has no training image with a visible object.")
    if batch_size % world_size:
        raise DataError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}, which {world_size} processes cannot share equally; take a multiple."
        )
    plan = BatchPlan(view, batch_size, cfg.SEED, cfg.DATALOADER.ASPECT_RATIO_GROUPING)
    return DataLoader(
        _TrainSet(view.images, build_transform(cfg)),
        batch_sampler=_PlannedBatches(plan, iterations, rank, world_size),
        collate_fn=collate,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=torch.cuda.is_available(),
    )


class ImageSet(Dataset):
    """Images alone, as prediction takes them: (position, (3, h, w) float32 in [0, 1])."""

    def __init__(self, paths: Sequence) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, read_image(self.paths[index]).float().div_(255)
