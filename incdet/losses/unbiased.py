"""Losses that know that the background holds classes which are not labelled, as pure functions.

An old object in a new image is unlabelled, and so is a new object in the old detector's eyes: both are called
background. These losses ask of "background" only that the region is none of the classes that were labelled (Cermelli et
al., CVPRW 2022). Shapes: R regions, K classes of the student, K_old of the teacher; the background is the last column.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from incdet.losses.distillation import mean_or_zero, student_old_logits
from incdet.structures import IGNORED


def unbiased_classification(logits: Tensor, labels: Tensor, weights: Tensor, num_old: int) -> Tensor:
    """Cross-entropy in which a background region may be an old object (Cermelli et al., CVPRW 2022).

    It costs -log(p_background + sum of the old classes' p), every other region -log p of its label. Weights, ignored
    regions and the divisor are those of ``detection.region_losses``.

    Args:
        logits: (R, K + 1).
        labels: (R,) K = background, -1 = ignored.
        weights: (R,).
        num_old: how many of the K classes, the first ones, are old.
    """
    total = logits.logsumexp(dim=1, keepdim=True)
    not_new = student_old_logits(logits, num_old).logsumexp(dim=1, keepdim=True)
    log_p = torch.cat([logits[:, :-1], not_new], dim=1) - total
    loss = F.nll_loss(log_p, labels, ignore_index=IGNORED, reduction="none")
    return (weights * loss).sum() / (labels != IGNORED).sum().clamp(min=1)


def unbiased_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher, whose background may be a new object (Cermelli et al., CVPRW 2022).

    The teacher's background is compared with the student's p_background + sum of the new classes' p. Averaged over
    regions and over the teacher's K_old + 1 columns, as in the release. At best it is the teacher's entropy, not zero.

    Args:
        student: (R, K + 1) logits.
        teacher: (R, K_old + 1) logits of the previous detector.
    """
    num_old = teacher.shape[1] - 1
    log_p = student.log_softmax(dim=1)
    not_old = log_p[:, num_old:].logsumexp(dim=1, keepdim=True)
    log_p = torch.cat([log_p[:, :num_old], not_old], dim=1)
    return mean_or_zero(-teacher.softmax(dim=1) * log_p)
