"""The loss of a classifier whose images carry several labels, as a pure function."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from incdet.structures import IGNORED


def multi_label_loss(logits: Tensor, label_sets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of every class by itself, the mean over what is known (PPI, section 3).

    Args:
        logits: (R, K).
        label_sets: (R, K) 1 present, 0 absent, or a probability between them; IGNORED where nobody knows: such a
            place costs nothing and is not counted.
        weights: (R,) of the images; None = 1.
    """
    known = label_sets != IGNORED
    loss = F.binary_cross_entropy_with_logits(logits, label_sets.clamp(min=0).to(logits.dtype), reduction="none")
    if weights is not None:
        loss = weights[:, None] * loss
    return loss[known].sum() / known.sum().clamp(min=1)
