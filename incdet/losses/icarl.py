"""iCaRL's loss: one sigmoid per class, taught old classes by the old model and new ones by the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from incdet.structures import IGNORED


def distilled_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, old_logits: Tensor | None) -> Tensor:
    """Binary cross-entropies of all classes, summed, and averaged over the images (Rebuffi et al., CVPR 2017, alg. 3).

    An old class is to have the old model's probability, in images of old classes too; a new class its label.

    Args:
        logits: (R, K).
        labels: (R,) in ``[0, K)``, or IGNORED: such an image teaches nothing.
        weights: (R,) of the images.
        old_logits: (R, K_old) of the old model, None in the first task.
    """
    targets = F.one_hot(labels.clamp(min=0), logits.shape[1]).to(logits.dtype)
    if old_logits is not None:
        targets[:, : old_logits.shape[1]] = old_logits.sigmoid()
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    taught = labels != IGNORED
    return (losses * weights)[taught].sum() / taught.sum().clamp(min=1)
