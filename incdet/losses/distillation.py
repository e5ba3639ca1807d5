"""Distillation losses of incremental detection, as pure functions.

Shapes: R regions, K_old classes of the teacher, N images, A anchors. The background is the last column of all logits,
so the student's logits over (old classes, background) are ``student_old_logits``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from incdet.structures import ImageOutputs


def student_old_logits(logits: Tensor, num_old: int) -> Tensor:
    """The student's columns that the teacher has too: (R, K + 1) -> (R, K_old + 1)."""
    return torch.cat([logits[:, :num_old], logits[:, -1:]], dim=1)


def student_old_deltas(deltas: Tensor, num_old: int) -> Tensor:
    """The student's boxes that the teacher has too: (R, K, 4) -> (R, K_old, 4); class-agnostic ones (R, 1, 4) stay."""
    return deltas if deltas.shape[1] == 1 else deltas[:, :num_old]


def ilod_classification(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of logits whose mean over the classes is removed (Shmelkov et al., ICCV 2017, eq. 1).

    Args:
        student: (R, K_old + 1) logits over old classes and background.
        teacher: the same of the previous detector.
    """
    difference = _centred(student) - _centred(teacher)
    return mean_or_zero(difference.square())


def ilod_boxes(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the old classes' box deltas (Shmelkov et al., ICCV 2017, eq. 1).

    The released Faster ILOD divides by regions and old classes and **sums** the four coordinates; so does this.

    Args:
        student: (R, K_old, 4), or (R, 1, 4) where boxes are class-agnostic.
        teacher: the same of the previous detector.
    """
    return mean_or_zero((student - teacher).square().sum(dim=2))


def one_sided_features(student: Tensor, teacher: Tensor) -> Tensor:
    """L1 on a feature map where the teacher's activation is the higher one (Peng et al., PRL 2020, eq. 3).

    The mean of each map is removed first. What the student adds costs nothing, so it stays free to learn.

    Args:
        student: (N, C, h, w).
        teacher: the same of the previous detector.
    """
    gap = (teacher - teacher.mean()) - (student - student.mean())
    return gap.clamp(min=0).mean()


def one_sided_objectness(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared gap of anchor logits where the teacher's is higher (Peng et al., PRL 2020, eq. 4).

    Args:
        student: (N, A) objectness logits.
        teacher: the same of the previous detector.
    """
    return (teacher - student).clamp(min=0).square().mean()


def one_sided_anchor_boxes(
    student: Tensor, teacher: Tensor, student_objectness: Tensor, teacher_objectness: Tensor, margin: float
) -> Tensor:
    """Squared distance of anchor deltas where the teacher is surer of the anchor by ``margin`` (Peng et al., eq. 4).

    Args:
        student: (N, A, 4) deltas.
        teacher: the same of the previous detector.
        student_objectness: (N, A) logits.
        teacher_objectness: (N, A) logits.
        margin: of the logits; 0.1 in the release.
    """
    surer = teacher_objectness > student_objectness + margin
    squares = (student - teacher).square().sum(dim=2)
    return (squares * surer).mean()


def one_sided_proposals(student: ImageOutputs, teacher: ImageOutputs, margin: float) -> Tensor:
    """Both one-sided terms of the proposal network (Peng et al., PRL 2020, eq. 4); ``margin`` is the boxes' one."""
    objectness = one_sided_objectness(student.objectness, teacher.objectness)
    boxes = one_sided_anchor_boxes(
        student.anchor_deltas, teacher.anchor_deltas, student.objectness, teacher.objectness, margin
    )
    return objectness + boxes


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean, and a zero that still has gradients where there is nothing to average."""
    return values.mean() if values.numel() else values.sum()


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)
