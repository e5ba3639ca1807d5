"""What ELI has to beat, through the same interface: one mean shift, and a ridge regression from new to old latents.

Without hidden layers ELI itself can only shift all rows alike, and its fit rests where the shifted mean of the new
latents is that of the old ones. The first baseline is that shift in closed form; the second also uses the pairing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from incdet.align.base import Aligner, check_pairs
from incdet.errors import ConfigError

RIDGE_STRENGTH = 0.01  # ours


class MeanShift(Aligner):
    """Moves every row by the same vector (D,)."""

    kind = "mean_shift"

    def __init__(self, width: int) -> None:
        super().__init__(width=width)
        self.shift = nn.Parameter(torch.zeros(width), requires_grad=False)

    def move(self, features: Tensor) -> Tensor:
        return features + self.shift


class Ridge(Aligner):
    """Moves each row by the same vector and by a linear function of where it lies: D + D + D * D numbers."""

    kind = "ridge"

    def __init__(self, width: int) -> None:
        super().__init__(width=width)
        self.shift = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.centre = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.weight = nn.Parameter(torch.zeros(width, width), requires_grad=False)

    def move(self, features: Tensor) -> Tensor:
        return features + self.shift + (features - self.centre) @ self.weight


@torch.inference_mode(False)
def fit_mean_shift(old: Tensor, new: Tensor) -> MeanShift:
    """The shift that brings the mean of ``new`` (R, D) onto that of ``old`` (R, D).

    Raises:
        MethodError: the latents are not pairs.
    """
    check_pairs(old, new)
    aligner = MeanShift(old.shape[1]).to(old.device)
    aligner.shift.copy_((old.double() - new.double()).mean(dim=0))
    aligner.provenance = {"latents": len(old)}
    return aligner


@torch.inference_mode(False)
def fit_ridge(old: Tensor, new: Tensor, strength: float = RIDGE_STRENGTH) -> Ridge:
    """The affine map from ``new`` (R, D) to ``old`` (R, D) of least squares, drawn towards a mere shift.

    Minimises ``|old - new - shift - (new - centre) V|^2 + penalty |V|^2``: it is the *difference* that is regressed, so
    that a strong penalty leaves the mean shift rather than one point for all.

    Args:
        old: latents of the previous model.
        new: of the current model, for the same inputs.
        strength: the penalty, as a share of the squared spread of ``new`` in its average direction. It is given, not
            tuned: there are no old data to tune it on.

    Raises:
        MethodError: the latents are not pairs.
        ConfigError: the strength is not positive.
    """
    check_pairs(old, new)
    if not (strength > 0 and math.isfinite(strength)):
        raise ConfigError(f"Ridge regression of latents: strength is to be positive and finite, got {strength}.")
    width = old.shape[1]
    old64, new64 = old.cpu().double(), new.cpu().double()  # not every accelerator has float64
    centre, shift = new64.mean(dim=0), (old64 - new64).mean(dim=0)
    spread = new64 - centre
    gram = spread.T @ spread
    # In units of the mean diagonal, the condition of the system is at most 1 + D / strength, whatever the latents.
    penalty = (strength * gram.diagonal().mean()).clamp(min=torch.finfo(torch.float64).tiny)  # latents all alike
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, spread.T @ (old64 - new64 - shift))
    aligner = Ridge(width).to(old.device)
    for parameter, value in ((aligner.shift, shift), (aligner.centre, centre), (aligner.weight, weight)):
        parameter.copy_(value)
    aligner.provenance = {"strength": strength, "latents": len(old)}
    return aligner
