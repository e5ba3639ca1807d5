"""LUCIR's losses on directions: lengths of features and of class weights do not count (Hou et al., CVPR 2019).

Shapes: R regions, K classes of which the first K_old are old, D width of a feature.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from incdet.losses.distillation import mean_or_zero


def less_forget_weight(base: float, num_old: int, num_new: int) -> float:
    """The less-forget loss weighs more, the more classes there are to be kept (Hou et al., section 3.5)."""
    return base * math.sqrt(num_old / num_new)


def less_forget(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the features (R, D) of student and teacher, averaged (Hou et al., eq. 6)."""
    return mean_or_zero(1 - F.cosine_similarity(student, teacher, dim=1))


def margin_ranking(cosines: Tensor, labels: Tensor, num_old: int, hardest: int, margin: float) -> Tensor:
    """Old objects keep a margin between their own class and the new classes that they resemble most (eq. 8).

    The mean over old objects and their ``hardest`` new classes of max(0, margin - own cosine + new cosine).

    Args:
        cosines: (R, K) of features and class weights.
        labels: (R,); only those in ``[0, num_old)`` take part.
        num_old: K_old, at least one less than K.
        hardest: how many new classes; all, where there are fewer.
        margin: of the cosines.
    """
    old = (labels >= 0) & (labels < num_old)
    own = cosines[old].gather(1, labels[old, None])
    new = cosines[old, num_old:]
    nearest = new.topk(min(hardest, new.shape[1]), dim=1).values
    return mean_or_zero((margin - own + nearest).clamp(min=0))
