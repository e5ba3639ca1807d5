"""The base losses of a two-stage detector, from the typed outputs.

They equal torchvision's ``RegionProposalNetwork.compute_loss`` and ``fastrcnn_loss`` when every weight is one
(``tests/parity/test_torchvision.py``). Shapes: see ``incdet.structures``.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from incdet.structures import IGNORED, ImageOutputs, RegionOutputs


def rpn_losses(images: ImageOutputs, beta: float, skip: Collection[str] = ()) -> dict[str, Tensor]:
    """Objectness and anchor regression over the sampled anchors (Ren et al. 2015, eq. 1).

    Args:
        images: with ``anchor_labels`` and ``anchor_targets``.
        beta: where smooth L1 turns from square to linear.
        skip: names not to compute.
    """
    labels, targets = images.anchor_labels, images.anchor_targets
    if labels is None or targets is None:
        raise ValueError("rpn_losses needs outputs that were computed with targets")
    sampled = labels >= 0
    count = sampled.sum().clamp(min=1)
    losses = {}
    if "loss_rpn_cls" not in skip:
        loss = F.binary_cross_entropy_with_logits(images.objectness[sampled], labels[sampled], reduction="sum")
        losses["loss_rpn_cls"] = loss / count
    if "loss_rpn_loc" not in skip:
        positive = labels == 1
        loss = F.smooth_l1_loss(images.anchor_deltas[positive], targets[positive], beta=beta, reduction="sum")
        losses["loss_rpn_loc"] = loss / count
    return losses


def region_losses(regions: RegionOutputs, beta: float, skip: Collection[str] = ()) -> dict[str, Tensor]:
    """Weighted cross-entropy and box regression over the sampled regions (Girshick 2015, eq. 1).

    Ignored regions cost nothing and are not counted.

    Args:
        regions: with ``labels``, ``delta_targets`` and ``weights``.
        beta: where smooth L1 turns from square to linear.
        skip: names not to compute.
    """
    labels, targets, weights = regions.labels, regions.delta_targets, regions.weights
    if labels is None or targets is None or weights is None:
        raise ValueError("region_losses needs regions that were sampled with targets")
    count = (labels != IGNORED).sum().clamp(min=1)
    losses = {}
    if "loss_cls" not in skip:
        loss = F.cross_entropy(regions.logits, labels, ignore_index=IGNORED, reduction="none")
        losses["loss_cls"] = (weights * loss).sum() / count
    if "loss_box_reg" not in skip:
        background = regions.logits.shape[1] - 1
        positive = torch.where((labels != IGNORED) & (labels < background))[0]
        column = labels[positive] if regions.deltas.shape[1] > 1 else torch.zeros_like(positive)
        loss = F.smooth_l1_loss(regions.deltas[positive, column], targets[positive], beta=beta, reduction="none")
        losses["loss_box_reg"] = (weights[positive, None] * loss).sum() / count
    return losses
