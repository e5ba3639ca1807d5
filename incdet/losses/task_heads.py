"""Distillation of one task's classes at a time, as if each task had a head of its own.

Shapes: R regions, K_t classes of the task.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def head_distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of a student's softened probabilities with a teacher's (LwF, ECCV 2016, eq. 2), the mean.

    Args:
        student: (R, K_t) logits that compete with each other.
        teacher: the same of the previous detector.
        temperature: of both.
    """
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(dim=1))


def sigmoid_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross-entropy of a student's sigmoids with a teacher's, the mean (PPI's release).

    Args:
        student: (R, K_t) logits, each of a class by itself.
        teacher: the same of the previous detector.
    """
    return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())
