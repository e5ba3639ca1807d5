"""Pairs of latents: the same regions through the previous and the current detector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.ops import box_iou
from tqdm import tqdm

from incdet.align.base import LatentPairs
from incdet.backends.base import Detector, scale_of
from incdet.data.images import read_image
from incdet.data.loader import image_target
from incdet.data.views import TrainImage
from incdet.structures import Batch

BACKGROUND_IOU = 0.5  # a proposal that overlaps no visible object by this much counts as background


@torch.no_grad()
def collect_pairs(
    previous: Detector,
    current: Detector,
    images: Sequence[TrainImage],
    cfg: CfgNode,
    fabric: Fabric,
    background: int,
    limit: int,
    seed: int,
) -> LatentPairs:
    """Region features of visible objects and of some of the current detector's proposals, through both detectors.

    Each detector computes everything from the pixels on, so the drift of its backbone counts too. (ELI's release feeds
    both heads the current backbone's features, and sees the drift of the head alone.)

    Args:
        previous: as the task before left it.
        current: with the same kind of features.
        images: of the current task.
        cfg: of the task.
        fabric: launched.
        background: proposals per image beside the objects, drawn from those that lie on none. Objects of old classes,
            which are not labelled, are among them.
        limit: images are drawn, in a fixed order, until there are so many latents.
        seed: of what is drawn.

    Returns:
        The pairs, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).tolist()
    share_frozen = previous.shares_frozen_stages_with(current)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    size = cfg.TEST.IMS_PER_BATCH
    starts = tqdm(range(0, len(order), size), desc="latents", disable=fabric.global_rank > 0, leave=False)
    with previous.evaluating(), current.evaluating():
        for start in starts:
            batch = [images[position] for position in order[start : start + size]]
            pixels = [read_image(image.record.path).float().div_(255).to(fabric.device) for image in batch]
            seen = current.image_pass(Batch(pixels, targets=None))
            chosen = [
                _regions(image, scale_of(proposals, resized, one.shape[-2:]), proposals, background, generator)
                for image, one, proposals, resized in zip(batch, pixels, seen.proposals, seen.image_sizes, strict=True)
            ]
            boxes = [found for found, _ in chosen]
            seen_before = previous.image_pass_like(seen, share_frozen)
            old = previous.box_features(previous.pool(seen_before, boxes))
            new = current.box_features(current.pool(seen, boxes))
            parts.append((old.float().cpu(), new.float().cpu(), torch.cat([found for _, found in chosen])))
            if sum(len(part[2]) for part in parts) >= limit:
                break
    return LatentPairs(*(torch.cat(column)[:limit] for column in zip(*parts, strict=True)))


def _regions(
    image: TrainImage, scale: Tensor, proposals: Tensor, background: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Boxes (r, 4) to look at, in the resized image, and their labels (r,) on the CPU."""
    target = image_target(image)
    target = target.select(target.use_roi)
    objects = target.boxes.to(proposals.device) * scale
    if len(objects) and len(proposals):
        proposals = proposals[box_iou(proposals, objects).amax(dim=1) < BACKGROUND_IOU]
    picks = torch.randperm(len(proposals), generator=generator)[:background].to(proposals.device)
    labels = torch.cat([target.labels, torch.full((len(picks),), -1)])
    return torch.cat([objects, proposals[picks]]), labels
