"""Where features of the previous model lie in the current one: the way in which prototypes have to move.

An aligner takes features back to the previous model; here it is fitted from the same pairs the other way round.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from incdet.align.base import LatentPairs, check_pairs
from incdet.align.baselines import fit_mean_shift, fit_ridge
from incdet.errors import ConfigError

KINDS = ("none", "shift", "ridge", "sdc")
Move = Callable[[Tensor], Tensor]  # features (n, D) of the previous model -> where the current one has them


def fit_drift(kind: str, pairs: LatentPairs, ridge_strength: float, bandwidth: float) -> Move:
    """The map from the previous model's features to the current one's.

    Args:
        kind: ``none``: they stay; ``shift``: the mean displacement of all pairs; ``ridge``: an affine map of least
            squares, drawn towards that shift; ``sdc``: the mean displacement of the pairs around each point.
        pairs: the same regions through both models.
        ridge_strength: of ``ridge`` (``incdet.align.baselines.fit_ridge``).
        bandwidth: of ``sdc`` (``local_shift``).

    Raises:
        ConfigError: the kind is not known, or the ridge's strength is not positive.
        MethodError: there are no pairs, or they are not finite.
    """
    if kind == "none":
        return lambda features: features
    if kind == "shift":
        return fit_mean_shift(pairs.new, pairs.old)
    if kind == "ridge":
        return fit_ridge(pairs.new, pairs.old, ridge_strength)
    if kind == "sdc":
        check_pairs(pairs.old, pairs.new)
        return lambda features: local_shift(features, pairs.old, pairs.new - pairs.old, bandwidth)
    raise ConfigError(f"Drift of features: expected one of {', '.join(KINDS)}, got {kind!r}.")


def local_shift(points: Tensor, anchors: Tensor, displacements: Tensor, bandwidth: float) -> Tensor:
    """Each point moved by the mean displacement of the anchors around it (SDC, Yu et al., CVPR 2020, eq. 9 and 10).

    The weight of an anchor is Gaussian in its distance. The paper's features have length one and its width is a
    number; here (ours) the width is a share of the point's median distance to the anchors, whatever their scale.

    Args:
        points: (n, D).
        anchors: (R, D).
        displacements: (R, D) of the anchors.
        bandwidth: the share, above 0.
    """
    squares = torch.cdist(points, anchors).square()
    width = 2 * bandwidth**2 * squares.median(dim=1, keepdim=True).values
    weights = (-squares / width.clamp(min=torch.finfo(squares.dtype).tiny)).softmax(dim=1)
    return points + weights @ displacements
