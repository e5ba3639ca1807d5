"""Which rows an aligner may move. A gate decides from the model alone; only the oracle is told the truth.

The released evaluation of ELI moves the features of old classes only, and takes from the **ground truth** which those
are. At prediction nobody knows; here that is the oracle, for comparison, and whatever it touches is stamped.

- ``predicted_old``: rows that the unaligned model classifies as an old class. What it takes for background is left:
  most regions are background, so to move these too would be ``all``.
- ``not_new``: rows that it does not classify as a new class: old ones, and what it takes for background, where a
  detector that was merely fine-tuned leaves all its old objects (ours).
- ``all``: every row.
- ``energy``: rows that look old to the energy network, those scoring above nearly all of the current task's latents of
  the current model. Scores of the *old* latents would make no threshold: the fit drives them above whatever the current
  model makes, of old classes too.
- :class:`Oracle`: rows whose label, handed in, is an old class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from incdet.align.base import Aligner
from incdet.align.energy import EnergyAligner
from incdet.errors import ConfigError, MethodError

# What the predictor makes of features (R, D): logits (R, K + 1), or (R, K) where there is no background, and deltas.
Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
# (features, predictor, aligner, number of old classes) -> (R,) bool: the rows to move.
Gate = Callable[[Tensor, Predictor, Aligner, int], Tensor]


def predicted_old(features: Tensor, predictor: Predictor, aligner: Aligner, num_old: int) -> Tensor:
    """Rows whose unaligned features are classified as an old class."""
    return predictor(features)[0].argmax(dim=1) < num_old


def not_new(features: Tensor, predictor: Predictor, aligner: Aligner, num_old: int) -> Tensor:
    """Rows whose unaligned features are classified as an old class or as background, where there is one."""
    logits, deltas = predictor(features)
    found = logits.argmax(dim=1)
    has_background = deltas.shape[1] > 0  # whole images have neither boxes nor a background
    return (found < num_old) | (has_background & (found == logits.shape[1] - 1))


def every_row(features: Tensor, predictor: Predictor, aligner: Aligner, num_old: int) -> Tensor:
    return torch.ones(len(features), dtype=torch.bool, device=features.device)


def energy(features: Tensor, predictor: Predictor, aligner: Aligner, num_old: int) -> Tensor:
    """Rows that an energy aligner finds familiar; ``MethodError`` for any other aligner."""
    if not isinstance(aligner, EnergyAligner):
        raise MethodError(
            f"The energy gate needs an energy aligner, got {aligner.kind!r}. Choose another gate or another aligner."
        )
    return aligner.is_familiar(features)


@dataclass(frozen=True)
class Oracle:
    """Rows whose true label, (R,) for the very rows that will be aligned, is an old class."""

    labels: Tensor

    def __call__(self, features: Tensor, predictor: Predictor, aligner: Aligner, num_old: int) -> Tensor:
        if len(self.labels) != len(features):
            raise MethodError(
                f"The oracle gate was given {len(self.labels)} labels for {len(features)} rows. Make one with the "
                "labels of the rows at hand."
            )
        return ((self.labels >= 0) & (self.labels < num_old)).to(features.device)


GATES: dict[str, Gate] = {"predicted_old": predicted_old, "not_new": not_new, "all": every_row, "energy": energy}


def find_gate(name: str) -> Gate:
    """The gate of that name, or ``ConfigError``; the oracle, which needs labels, is made by hand."""
    if name not in GATES:
        raise ConfigError(
            f"Gate: expected one of {', '.join(GATES)}, got {name!r}. The oracle is not chosen by name: it is built "
            "as Oracle(labels), for comparison only."
        )
    return GATES[name]


@dataclass(frozen=True)
class Link:
    """One task's aligner: from the detector after the task to the one before it, which knew ``num_old`` classes."""

    aligner: Aligner
    num_old: int


class AlignerChain(nn.Module):
    """The aligners of all later tasks behind one gate; what the gate leaves stays to the bit. Fits a detector's slot.

    Classes that task k taught are read where task k left them: their features go back through the aligners of the
    tasks t, t - 1, ..., k + 1. Each link has its own say of a row, by its own number of old classes, and always of the
    features as they came in.

    Args:
        links: one per task from the second on, oldest first; without any, nothing moves.
        gate: which rows a link moves.
    """

    def __init__(self, links: Sequence[Link], gate: Gate = predicted_old) -> None:
        super().__init__()
        self.aligners = nn.ModuleList(link.aligner for link in links)
        self.nums_old = [link.num_old for link in links]
        self.gate = gate

    @property
    def stamps(self) -> tuple[str, ...]:
        """What every result, table and report that used this chain has to carry."""
        return ("oracle",) if isinstance(self.gate, Oracle) else ()

    @torch.no_grad()
    def forward(self, features: Tensor, predictor: Predictor) -> Tensor:
        """Features (R, D), moved where the gate says so."""
        aligned = features
        for aligner, num_old in reversed(list(zip(self.aligners, self.nums_old, strict=True))):
            moved = self.gate(features, predictor, cast("Aligner", aligner), num_old)
            rows = moved.nonzero().squeeze(1)
            aligned = aligned.index_copy(0, rows, aligner(aligned[rows]))
        return aligned


class HeadwiseChain(nn.Module):
    """Logits of which each task's are read from the features as that task left them. Fits a read-out's slot.

    For classifiers with one head per task: whoever reads a head knows the task, so nothing has to be gated.

    Args:
        links: one per task from the second on, oldest first.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        super().__init__()
        self.aligners = nn.ModuleList(link.aligner for link in links)
        self.nums_old = [link.num_old for link in links]

    @torch.no_grad()
    def forward(self, features: Tensor, predictor: Predictor) -> Tensor:
        """Logits (R, K)."""
        logits = predictor(features)[0]
        for aligner, num_old in reversed(list(zip(self.aligners, self.nums_old, strict=True))):
            features = aligner(features)
            logits = torch.cat([predictor(features)[0][:, :num_old], logits[:, num_old:]], dim=1)
        return logits
