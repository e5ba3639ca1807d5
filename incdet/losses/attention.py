"""Attentive distillation of pooled region features (Liu et al., Augmented Box Replay, ICCV 2023).

Shapes: R regions, C channels, pooled to h x w cells.
"""

from __future__ import annotations

from torch import Tensor


def spatial_attention(features: Tensor) -> Tensor:
    """Where a region's features are strong: the softmax over its cells of their mean square, times their number.

    One everywhere on features that are equally strong everywhere, so that it weighs cells without changing the scale.

    Args:
        features: (R, C, h, w).

    Returns:
        (R, h, w), each region summing to h * w.
    """
    strength = features.float().square().mean(dim=1)
    return strength.flatten(1).softmax(dim=1).view_as(strength) * strength.shape[1:].numel()


def attentive_distillation(student: Tensor, teacher: Tensor, gamma: float) -> Tensor:
    """Squared distance of features where the teacher attends, and absolute distance of the attentions.

    ``mean(A_T * (F_S - F_T)^2) + gamma * mean(abs(A_S - A_T))``, the first mean over regions, channels and cells, the
    second over regions and cells (the release's attentive ROI distillation).

    Args:
        student: (R, C, h, w) pooled features.
        teacher: the same regions, pooled by the previous detector.
        gamma: weight of the second part.
    """
    if not len(student):
        return student.sum()  # a zero that still has gradients
    attention = spatial_attention(teacher)
    squares = (student.float() - teacher.float()).square()
    distance = (attention[:, None] * squares).mean()
    return distance + gamma * (spatial_attention(student) - attention).abs().mean()
