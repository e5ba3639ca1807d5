"""Distillation of one task's classes at a time, as if each task had a head of its own.

Shapes: R regions, K classes of the student, the first K_old of which the teacher knows, K_t classes of a task. A
detector's logits have the background as one column more, the last one, a classifier's have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from incdet.losses.distillation import mean_or_zero


def head_distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of a student's softened probabilities with a teacher's (LwF, ECCV 2016, eq. 2), the mean.

    The paper's p^(1/T), made to sum to one again, is the softmax of logits over T. There is no factor T^2: at small
    differences the gradient is weaker by it. At best the loss is the teacher's entropy, not zero.

    Args:
        student: (R, K_t) logits that compete with each other.
        teacher: the same of the previous detector.
        temperature: of both.
    """
    targets = (teacher / temperature).softmax(dim=1)
    return mean_or_zero(F.cross_entropy(student / temperature, targets, reduction="none"))


def sigmoid_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross-entropy of a student's sigmoids with a teacher's, the mean (PPI's release).

    Args:
        student: (R, K_t) logits, each of a class by itself.
        teacher: the same of the previous detector.
    """
    return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())


def task_logits(logits: Tensor, labels: range, num_classes: int) -> Tensor:
    """The columns of one task's classes and, where there is one, of the background."""
    return torch.cat([logits[:, labels.start : labels.stop], logits[:, num_classes:]], dim=1)


def head_pairs(student: Tensor, teacher: Tensor, heads: Sequence[range]) -> list[tuple[Tensor, Tensor]]:
    """What the student and the teacher say of each head's classes, and of the background where there is one.

    Args:
        student: (R, K), or (R, K + 1).
        teacher: (R, K_old), or (R, K_old + 1).
        heads: the labels that compete with each other, up to K_old.
    """
    num_old = heads[-1].stop
    num_classes = student.shape[1] - (teacher.shape[1] - num_old)
    return [(task_logits(student, labels, num_classes), task_logits(teacher, labels, num_old)) for labels in heads]
