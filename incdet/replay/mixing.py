"""Crops of old objects in new images: mixup and mosaic (Liu et al., Augmented Box Replay, ICCV 2023).

The values are the release's. What is drawn comes from torch's CPU generator, on whatever device the pixels are. Images
and crops are (3, h, w) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from incdet.structures import Target

FITTING = 0.2, 0.7  # a crop's mean side, in mean sides of the image, with which it is left as it is ...
RESCALED = 0.4, 0.6  # ... and to which it is brought otherwise
BLEND = 2.0, 5.0  # of the Beta distribution that the image's weight below a crop is drawn from
MAX_OVERLAP = 0.3  # of a pasted crop with another object, as a share of the smaller of the two
ATTEMPTS = 10  # to find room for a crop from the top left, and as many from the bottom right
CENTRE = 0.4, 0.6  # of a mosaic, in sides of the canvas
GREY = 114 / 255  # of the canvas


def fit(crop: Tensor, size: Sequence[int]) -> Tensor:
    """The crop as it is, or brought to a share of an image where it would be too small or too large for it.

    Args:
        crop: (3, h, w).
        size: (height, width) of the image.
    """
    share = sum(crop.shape[-2:]) / sum(size)
    if FITTING[0] <= share <= FITTING[1]:
        return crop
    scale = _uniform(RESCALED) / share
    height, width = (max(round(scale * side), 1) for side in crop.shape[-2:])
    return F.interpolate(crop[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def paste(image: Tensor, crop: Tensor, left: int, top: int, weight: float = 0.0) -> Tensor:
    """Lay a crop over an image, in place; what lies outside of it is cut off.

    Args:
        image: (3, h, w), changed.
        crop: (3, h', w').
        left: the column of the crop's left edge, which may lie outside.
        top: the row of its top edge.
        weight: of the image below the crop; the crop's is one less this.

    Returns:
        The box (4,) of what is visible of the crop.
    """
    x1, y1, x2, y2 = _visible(crop.shape[-2:], image.shape[-2:], left, top)
    below, seen = image[:, y1:y2, x1:x2], crop[:, y1 - top : y2 - top, x1 - left : x2 - left]
    below.mul_(weight).add_(seen, alpha=1 - weight)
    return torch.tensor([x1, y1, x2, y2], dtype=torch.float32, device=image.device)


def mixup(image: Tensor, target: Target, crops: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Target]:
    """Blend crops into an image where they hide little of its objects; a crop without room is left out.

    Args:
        image: (3, h, w), left as it is.
        target: its objects, which stay.
        crops: fitting crops and their labels.

    Returns:
        The mixed image and its target, the crops that found room among its objects.
    """
    image = image.clone()
    weight = torch.distributions.Beta(*BLEND).sample().item()
    for crop, label in crops:
        corner = find_room(crop.shape[-2:], image.shape[-2:], target.boxes.cpu())
        if corner is not None:
            box = paste(image, crop, *corner, weight)
            target = target.joined(Target.from_boxes(box[None], torch.tensor([label], device=box.device)))
    return image, target


def mosaic(crops: Sequence[tuple[Tensor, int]], size: Sequence[int]) -> tuple[Tensor, Target]:
    """Four crops around a point of a grey square: top left, top right, bottom left, bottom right.

    Args:
        crops: four fitting crops and their labels.
        size: (height, width) of the image whose place the mosaic takes; its side is their mean.

    Returns:
        The mosaic and its target: what is visible of each crop.
    """
    side = sum(size) // 2
    x, y = (int(_uniform(CENTRE) * side) for _ in range(2))
    canvas = torch.full((3, side, side), GREY, device=crops[0][0].device)
    boxes = []
    for (crop, _), (right, below) in zip(crops, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        height, width = crop.shape[-2:]
        boxes.append(paste(canvas, crop, x if right else x - width, y if below else y - height))
    labels = torch.tensor([label for _, label in crops], device=canvas.device)
    return canvas, Target.from_boxes(torch.stack(boxes), labels)


def find_room(crop: Sequence[int], image: Sequence[int], boxes: Tensor) -> tuple[int, int] | None:
    """A random place for a crop that hides little of the boxes, and of which they hide little.

    Its top left corner is drawn from the top left of the image; where that fails, its bottom right corner from the
    bottom right.

    Args:
        crop: its (height, width).
        image: the image's (height, width).
        boxes: (n, 4) of the image's objects.

    Returns:
        The crop's (left, top), or None where no attempt finds room.
    """
    (height, width), (rows, columns) = crop, image
    for attempt in range(2 * ATTEMPTS):
        if attempt < ATTEMPTS:
            left, top = _integer(0, int(0.6 * columns)), _integer(0, int(0.4 * rows))
        else:
            left, top = _integer(int(0.4 * columns), columns) - width, _integer(int(0.6 * rows), rows) - height
        box = boxes.new_tensor(_visible(crop, image, left, top))
        if not (_overlap(box, boxes) > MAX_OVERLAP).any():
            return left, top
    return None


def _visible(crop: Sequence[int], image: Sequence[int], left: int, top: int) -> tuple[int, int, int, int]:
    """The box of the part of a crop that lies in the image."""
    return max(left, 0), max(top, 0), min(left + crop[1], image[1]), min(top + crop[0], image[0])


def _overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """The intersections (n,) of one box with others, as shares of the smaller of the two."""
    shared = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    smaller = torch.minimum((box[2:] - box[:2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(dim=1))
    return shared.clamp(min=0).prod(dim=1) / smaller


def _uniform(bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(()).item()


def _integer(low: int, high: int) -> int:
    """From ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()).item())
