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
from incdet.backends.base import Detector
from incdet.data.images import read_image
from incdet.data.loader import image_target
from incdet.data.views import TrainImage

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
    old: list[Tensor] = []
    new: list[Tensor] = []
    labels: list[Tensor] = []
    size, collected = cfg.TEST.IMS_PER_BATCH, 0
    modes = previous.training, current.training
    previous.eval(), current.eval()
    for start in tqdm(range(0, len(order), size), desc="latents", disable=fabric.global_rank > 0, leave=False):
        part = [images[position] for position in order[start : start + size]]
        pixels = [read_image(image.record.path).float().div_(255).to(fabric.device) for image in part]
        regions = [
            _regions(image, proposals, background, generator)
            for image, proposals in zip(part, current.proposals(pixels), strict=True)
        ]
        boxes = [found for found, _ in regions]
        for side, detector in ((old, previous), (new, current)):
            side += [features.float().cpu() for features in detector.region_features(pixels, boxes)]
        labels += [found for _, found in regions]
        collected += sum(map(len, boxes))
        if collected >= limit:
            break
    previous.train(modes[0]), current.train(modes[1])
    return LatentPairs(*(torch.cat(parts)[:limit] for parts in (old, new, labels)))


def _regions(
    image: TrainImage, proposals: Tensor, background: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Boxes (r, 4) to look at and their labels (r,) on the CPU."""
    target = image_target(image)
    target = target.select(target.use_roi)
    objects = target.boxes.to(proposals.device)
    if len(objects) and len(proposals):
        proposals = proposals[box_iou(proposals, objects).amax(dim=1) < BACKGROUND_IOU]
    picks = torch.randperm(len(proposals), generator=generator)[:background].to(proposals.device)
    labels = torch.cat([target.labels, torch.full((len(picks),), -1)])
    return torch.cat([objects, proposals[picks]]), labels
