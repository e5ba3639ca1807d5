"""Prototypes: what is remembered of a class when no image may be kept, one Gaussian of its region features.

Shapes: K classes, D width of a feature, r factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from incdet.errors import CheckpointError
from incdet.tensors import load_tensors, save_tensors

KIND = "prototypes"
_REMEDY = "It is written at the end of each task: learn that task again."


@dataclass(frozen=True)
class Prototypes:
    """Per class a Gaussian with covariance ``factors^T factors + diag(scales^2)``: its variances are exact."""

    means: Tensor  # (K, D)
    factors: Tensor  # (K, r, D) the main axes, each as long as one standard deviation
    scales: Tensor  # (K, D) standard deviation of what the factors leave
    counts: Tensor  # (K,) regions that each was fitted on; 0 = nothing is known of the class

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: Sequence[int], rank: int, prior: float) -> Prototypes:
        """The Gaussian of each class.

        Args:
            features: (R, D).
            labels: (R,); other labels than ``classes`` are left out.
            classes: whose prototypes these are, in order.
            rank: factors per class.
            prior: how many regions' weight the covariance shared by ``classes`` has in each of theirs: shrinkage for
                classes with few regions.
        """
        features = features.double()
        spreads = torch.cat([f - f.mean(dim=0) for f in (features[labels == c] for c in classes)])
        shared = spreads.T @ spreads / max(len(spreads), 1)
        parts = [_gaussian(features[labels == label], shared, rank, prior) for label in classes]
        means, factors, scales = (torch.stack(column).float() for column in zip(*parts, strict=True))
        return cls(means, factors, scales, torch.tensor([int((labels == c).sum()) for c in classes]))

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Features (n, D) drawn for classes ``labels`` (n,), counted from 0."""
        axes = torch.randn(len(labels), 1, self.factors.shape[1], generator=generator)
        rest = torch.randn(len(labels), self.means.shape[1], generator=generator)
        return self.means[labels] + (axes @ self.factors[labels]).squeeze(1) + rest * self.scales[labels]

    def moved(self, move: Callable[[Tensor], Tensor]) -> Prototypes:
        """The prototypes in another model; ``move`` takes points (n, D) there.

        The ends of the factors are moved as points: exact where ``move`` is affine. Scales stay.
        """
        means = move(self.means)
        ends = self.means[:, None] + self.factors
        factors = move(ends.flatten(0, 1)).view_as(ends) - means[:, None]
        return Prototypes(means, factors, self.scales, self.counts)

    def joined(self, more: Prototypes) -> Prototypes:
        """Those of other classes after these."""
        return Prototypes(*(torch.cat([getattr(self, f.name), getattr(more, f.name)]) for f in fields(self)))

    def __len__(self) -> int:
        return len(self.means)


def save_prototypes(path: Path, prototypes: Prototypes, classes: Sequence[str]) -> None:
    """Write prototypes with the names of their classes, whole or not at all.

    Raises:
        IncdetError: the disk is full or the folder cannot be written to.
    """
    save_tensors(path, KIND, vars(prototypes), {"classes": list(classes)})


def load_prototypes(path: Path, classes: Sequence[str]) -> Prototypes:
    """The prototypes of ``classes``.

    Raises:
        CheckpointError: the file is missing, damaged, or of other classes.
    """
    tensors, notes = load_tensors(path, KIND, _REMEDY)
    if notes["classes"] != list(classes):
        raise CheckpointError(
            f"{path}: expected prototypes of {', '.join(classes)}; found {', '.join(notes['classes'])}. {_REMEDY}"
        )
    return Prototypes(**tensors)


def _gaussian(features: Tensor, shared: Tensor, rank: int, prior: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), factors (r, D) and scales (D,) of one class's features (n, D)."""
    if not len(features):
        width = features.shape[1]
        return features.new_zeros(width), features.new_zeros(min(rank, width), width), features.new_zeros(width)
    mean = features.mean(dim=0)
    spread = features - mean
    covariance = (spread.T @ spread + prior * shared) / (len(features) + prior)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    leading = values.flip(0)[:rank].clamp(min=0).sqrt()
    factors = leading[:, None] * vectors.flip(1).T[:rank]
    rest = covariance.diagonal() - factors.square().sum(dim=0)
    return mean, factors, rest.clamp(min=0).sqrt()
