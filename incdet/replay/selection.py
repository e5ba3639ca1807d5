"""What to keep: rules that rank the images, or the objects, of one class, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from incdet.data.views import TrainImage

RULES = ("random", "class_balanced", "herding")


def images_of(images: Sequence[TrainImage], label: int) -> list[int]:
    """Positions of the images with a usable object of a class."""
    return [i for i, image in enumerate(images) if np.any((image.labels == label) & image.use_roi)]


def rank_random(images: Sequence[TrainImage], label: int, generator: torch.Generator) -> list[int]:
    """The images of a class in random order."""
    positions = images_of(images, label)
    return [positions[i] for i in torch.randperm(len(positions), generator=generator).tolist()]


def rank_balanced(images: Sequence[TrainImage], label: int, generator: torch.Generator) -> list[int]:
    """Random order, the images that show most different classes first: fewer images cover the classes. Ours."""
    order = rank_random(images, label, generator)
    return sorted(order, key=lambda i: -len(set(images[i].labels[images[i].use_roi].tolist())))


def rank_herding(features: Sequence[Tensor], count: int) -> list[int]:
    """Greedy choice whose running mean stays nearest to the mean of all (Rebuffi et al., CVPR 2017, alg. 4).

    Args:
        features: one (D,) per image of the class, already normalised.
        count: how many to choose.

    Returns:
        Positions in ``features``, in the order of choice.
    """
    if not features:
        return []
    stacked = torch.stack(list(features)).double()
    target, total = stacked.mean(dim=0), torch.zeros(stacked.shape[1], dtype=torch.float64)
    chosen: list[int] = []
    for step in range(1, min(count, len(stacked)) + 1):
        distance = (target - (total + stacked) / step).norm(dim=1)
        distance[chosen] = torch.inf
        best = int(distance.argmin())
        chosen.append(best)
        total += stacked[best]
    return chosen


def rank_mean(features: Tensor) -> list[int]:
    """The features (n, D) by their distance from their mean, nearest first (Liu et al., ICCV 2023)."""
    return (features - features.mean(dim=0)).norm(dim=1).argsort(stable=True).tolist()


def class_features(
    images: Sequence[TrainImage], features: Sequence[Tensor], label: int
) -> tuple[list[int], list[Tensor]]:
    """Positions of the images of a class, and for each the normalised mean feature of its objects of that class.

    Args:
        images: of a task.
        features: per image (n, D), one row for each of its visible boxes.
        label: the class.
    """
    positions = images_of(images, label)
    means = []
    for position in positions:
        image = images[position]
        mine = torch.from_numpy((image.labels == label) & image.use_roi)
        means.append(torch.nn.functional.normalize(features[position][mine].mean(dim=0), dim=0))
    return positions, means
