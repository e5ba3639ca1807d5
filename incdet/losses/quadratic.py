"""A quadratic penalty that holds important parameters near where they were (EWC, MAS)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def quadratic_penalty(
    parameters: Mapping[str, Tensor], anchors: Mapping[str, Tensor], importance: Mapping[str, Tensor]
) -> Tensor:
    """``sum_i importance_i (theta_i - anchor_i)^2`` (Kirkpatrick et al. 2017, eq. 3; Aljundi et al. 2018, eq. 4).

    Args:
        parameters: by name; may be more than the important ones.
        anchors: where the important ones are to stay, of the same shapes.
        importance: at least one parameter's.
    """
    terms = [(weight * (parameters[name] - anchors[name]).square()).sum() for name, weight in importance.items()]
    return torch.stack(terms).sum()
