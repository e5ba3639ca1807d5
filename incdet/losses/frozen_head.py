"""Distillation of region features through the predictors of teachers, which do not train, as pure functions.

What a teacher's predictor makes of the student's features is called *decoded*: it has the teacher's columns, so nothing
is cut out. Shapes: R regions; K_old classes of the old detector, K_new of an interim one. The background is the last
column of all logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from incdet.losses.distillation import mean_or_zero


def decoded_classification(decoded: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || decoded), averaged over regions and columns as BPF averages its cross-entropy.

    The gradient is the cross-entropy's; unlike that, it is zero where the features have not moved.

    Args:
        decoded: (R, C) logits or log-probabilities on the student's features.
        teacher: (R, C) the same on the teacher's own features of the same boxes.
    """
    pair = decoded.log_softmax(dim=1), teacher.log_softmax(dim=1)
    return mean_or_zero(F.kl_div(*pair, reduction="none", log_target=True))


def decoded_boxes(decoded: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance, averaged over regions, classes and coordinates.

    Args:
        decoded: (R, K, 4) deltas, or (R, 1, 4) where boxes are class-agnostic, on the student's features.
        teacher: the same on the teacher's own features of the same boxes.
    """
    return mean_or_zero((decoded - teacher).square())


def mixed_log_probabilities(old: Tensor, interim: Tensor, is_new: Tensor) -> Tensor:
    """The logarithm of ``bridge.bridged_targets``, finite where a probability is too small for one (BPF, ECCV 2024).

    Args:
        old: (R, K_old + 1) logits.
        interim: (R, K_new + 1) logits.
        is_new: (R,) bool, the region is a new object: there the interim detector is believed, elsewhere the old one;
            the other says what the believed one's background holds.

    Returns:
        (R, K_old + K_new + 1).
    """
    old, interim = old.log_softmax(dim=1), interim.log_softmax(dim=1)
    believing_old = torch.cat([old[:, :-1], old[:, -1:] + interim], dim=1)
    in_background = interim[:, -1:] + old
    believing_interim = torch.cat([in_background[:, :-1], interim[:, :-1], in_background[:, -1:]], dim=1)
    return torch.where(is_new[:, None], believing_interim, believing_old)
