"""Augmentation by torchvision's v2 transforms, on an image and the objects visible in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from incdet.errors import ConfigError
from incdet.structures import Target

Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]
SMALLEST_SIDE = 1.0  # pixels; boxes that augmentation makes smaller are dropped
GREY = (124, 116, 104)  # the ImageNet mean, what the normalised network sees as zero


def build_transform(cfg: CfgNode) -> Transform:
    """The training transform that ``cfg.INPUT`` describes: (3, h, w) uint8 to float32 in [0, 1], boxes follow.

    Resizing and normalisation are the detector's own. Randomness comes from torch's global generator.

    Raises:
        ConfigError: ``INPUT.RANDOM_FLIP`` is not known.
    """
    node = cfg.INPUT
    if node.RANDOM_FLIP not in ("horizontal", "none"):
        raise ConfigError(f"INPUT.RANDOM_FLIP: expected horizontal or none, got {node.RANDOM_FLIP!r}.")
    steps: list[torch.nn.Module] = []
    if node.ZOOM_OUT > 1:
        steps.append(v2.RandomZoomOut(fill=dict.fromkeys([tv_tensors.Image], GREY), side_range=(1.0, node.ZOOM_OUT)))
    if node.RANDOM_FLIP == "horizontal":
        steps.append(v2.RandomHorizontalFlip())
    if node.COLOR_JITTER > 0:
        steps.append(v2.ColorJitter(node.COLOR_JITTER, node.COLOR_JITTER, node.COLOR_JITTER))
    steps.append(v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True))
    geometric = v2.Compose(steps)

    def transform(image: Tensor, target: Target) -> tuple[Tensor, Target]:
        height, width = image.shape[-2:]
        boxes = tv_tensors.BoundingBoxes(target.boxes, format="XYXY", canvas_size=(height, width))
        new_image, new_boxes = geometric(tv_tensors.Image(image), boxes)
        plain = torch.as_tensor(new_boxes).as_subclass(Tensor)
        keep = ((plain[:, 2:] - plain[:, :2]) >= SMALLEST_SIDE).all(dim=1)
        return new_image.as_subclass(Tensor), replace(target, boxes=plain).select(keep)

    return transform
