"""The base losses of a two-stage detector, from the typed outputs.

They equal torchvision's ``RegionProposalNetwork.compute_loss`` and ``fastrcnn_loss`` when every weight is one
(``tests/parity/test_torchvision.py``). Shapes: see ``incdet.structures``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from incdet.structures import IGNORED, ImageOutputs, RegionOutputs

# (deltas (n, 4), their targets (n, 4), the boxes (n, 4) they move) -> (n,)
BoxLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def smooth_l1(beta: float) -> BoxLoss:
    """Smooth L1 on the deltas, summed over the four (Girshick 2015, eq. 3); ``beta`` is where it turns linear."""

    def loss(deltas: Tensor, targets: Tensor, boxes: Tensor) -> Tensor:
        if beta < 1e-5:  # a square of no width; 0 / 0 in its gradient
            return (deltas - targets).abs().sum(dim=1)
        return F.smooth_l1_loss(deltas, targets, beta=beta, reduction="none").sum(dim=1)

    return loss


def rpn_losses(
    images: ImageOutputs, box_loss: BoxLoss, skip: Collection[str] = (), count: int | None = None
) -> dict[str, Tensor]:
    """Objectness and anchor regression over the sampled anchors (Ren et al. 2015, eq. 1).

    Args:
        images: with ``anchor_labels`` and ``anchor_targets``.
        box_loss: of each positive anchor.
        skip: names not to compute.
        count: what the sums are divided by; None = the sampled anchors.
    """
    labels, targets = images.anchor_labels, images.anchor_targets
    if labels is None or targets is None:
        raise ValueError("rpn_losses needs outputs that were computed with targets")
    sampled = labels >= 0
    divisor = sampled.sum().clamp(min=1) if count is None else count
    losses = {}
    if "loss_rpn_cls" not in skip:
        loss = F.binary_cross_entropy_with_logits(images.objectness[sampled], labels[sampled], reduction="sum")
        losses["loss_rpn_cls"] = loss / divisor
    if "loss_rpn_loc" not in skip:
        positive = labels == 1
        anchors = torch.cat([anchors[row] for anchors, row in zip(images.anchors, positive, strict=True)])
        loss = box_loss(images.anchor_deltas[positive], targets[positive], anchors).sum()
        losses["loss_rpn_loc"] = loss / divisor
    return losses


def region_losses(regions: RegionOutputs, box_loss: BoxLoss, skip: Collection[str] = ()) -> dict[str, Tensor]:
    """Weighted cross-entropy and box regression over the sampled regions (Girshick 2015, eq. 1).

    Ignored regions cost nothing and are not counted.

    Args:
        regions: with ``labels``, ``delta_targets`` and ``weights``.
        box_loss: of each positive region.
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
        loss = box_loss(regions.deltas[positive, column], targets[positive], regions.boxes[positive])
        losses["loss_box_reg"] = (weights[positive] * loss).sum() / count
    return losses
