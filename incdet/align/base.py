"""What an aligner is: a module that moves features, row by row, and remembers how it was made.

It is fitted from *paired latents*, the same inputs through two models: ``old`` from the previous one, ``new`` from the
current one, both (R, D). The inputs are the current task's; no old image is needed. At prediction it is given features
of the current model and returns where the previous model would have had them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from incdet.errors import MethodError


@dataclass(frozen=True)
class LatentPairs:
    """The same regions of the current task's images through two models."""

    old: Tensor  # (R, D) of the previous model
    new: Tensor  # (R, D) of the current model
    labels: Tensor  # (R,) the visible object's class, in stream order; -1 = a proposal that lies on none

    def relative_drift(self) -> Tensor:
        """How far each latent moved, as a share of its length: (R,)."""
        return (self.new - self.old).norm(dim=1) / self.old.norm(dim=1).clamp(min=1e-6)


class Aligner(nn.Module, ABC):
    """Moves features (R, D) of the current model; no row of the result depends on another row.

    Attributes:
        kind: the name in files.
        arguments: what builds an equal module, JSON-able.
        provenance: how it was fitted, JSON-able; saved with it.
    """

    kind: ClassVar[str]

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.provenance: dict[str, Any] = {}

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """The aligned features (R, D), in the precision they came in."""
        # Under autocast the small steps of a walk would be lost to 16 bits.
        with torch.autocast(features.device.type, enabled=False):
            return self.move(features.to(self.dtype)).to(features.dtype)

    @abstractmethod
    def move(self, features: Tensor) -> Tensor:
        """The aligned features (R, D), in the aligner's own precision."""


def check_pairs(old: Tensor, new: Tensor) -> None:
    """Refuse what are not paired latents.

    Raises:
        MethodError: the two are not (R, D) of one shape with at least one row, or hold values that are not finite.
    """
    if old.ndim != 2 or old.shape != new.shape or not len(old):
        raise MethodError(
            "Aligner: expected latents of the same inputs, one (R, D) from each model with R > 0; got "
            f"{list(old.shape)} from the previous model and {list(new.shape)} from the current one. Collect both on "
            "the same regions of the task's images, and make sure that there are any."
        )
    for model, latents in (("previous", old), ("current", new)):
        if not latents.isfinite().all():
            raise MethodError(
                f"Aligner: latents of the {model} model are not all finite, so it has diverged. Look at the losses in "
                "metrics.jsonl and train again with a lower SOLVER.BASE_LR."
            )
