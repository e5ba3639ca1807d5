"""Distillation of region features through the old detector's own predictor, as pure functions.

Shapes: R regions, K_old classes of the teacher; the background is the last column of all logits. What the teacher's
predictor makes of the student's features is called *decoded*: it has the teacher's columns, so nothing is cut out.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def decoded_classification(decoded: Tensor, teacher: Tensor) -> Tensor:
    """The divergence KL(teacher || decoded) of the softmax over old classes and background, averaged over regions.

    Its gradient is the cross-entropy's; unlike that, it is zero where the features have not moved.

    Args:
        decoded: (R, K_old + 1) logits of the teacher's predictor on the student's features.
        teacher: (R, K_old + 1) logits of the teacher on its own features of the same boxes.
    """
    divergence = F.kl_div(decoded.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="sum", log_target=True)
    return divergence / max(len(decoded), 1)
