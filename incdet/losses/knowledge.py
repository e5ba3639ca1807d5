"""Distillation of softened probabilities, boxes and features (Hinton et al. 2015), as iOD takes it to detection.

Shapes: R regions, K_old classes of the teacher; no logits of a background here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from incdet.losses.distillation import mean_or_zero


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the positive terms of KL(teacher || student) at temperature T, summed, per region (iOD's release).

    A term p_T log(p_T / p_S) is negative where the student is the surer one; leaving it out, the release takes more
    than the divergence.

    Args:
        student: (R, K_old) logits of the old classes, without the background.
        teacher: the same of the previous detector.
        temperature: T; 6 in the release.
    """
    log_p = F.log_softmax(student / temperature, dim=1)
    terms = F.kl_div(log_p, F.log_softmax(teacher / temperature, dim=1), reduction="none", log_target=True)
    return temperature**2 * terms.clamp(min=0).sum() / max(len(student), 1)


def box_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of box deltas, over regions, classes and coordinates.

    Args:
        student: (R, K_old, 4), or (R, 1, 4) where boxes are class-agnostic.
        teacher: the same of the previous detector.
    """
    return mean_or_zero((student - teacher).square())


def feature_distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean squared distance of feature maps, each level (N, C, h, w) counting the same (ours; iOD has one level)."""
    return torch.stack([F.mse_loss(student[level], teacher[level]) for level in student]).mean()
