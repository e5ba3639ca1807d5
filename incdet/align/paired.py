"""An energy fitted to the pairing (ours): its walk is trained to arrive at the very latent that the old model made.

ELI's contrastive loss never asks which old latent belongs to which new one. Here the distance between them is the loss,
and it is differentiated through all steps of the walk. One limit remains: a step's Jacobian is ``1 + step_size * H``
with the Hessian ``H`` of one score, and symmetric, while drift is not. The walk therefore starts where ridge regression
leads, which takes care of what is linear in it, and has to learn the rest.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from tqdm import trange

from incdet.align.base import Aligner, check_pairs
from incdet.align.baselines import RIDGE_STRENGTH, Ridge, fit_ridge
from incdet.align.energy import EnergyNetwork
from incdet.errors import DivergenceError
from incdet.randomness import seeded

HIDDEN = (256,)  # this and all below: ours
STEPS = 3
STEP_SIZE = 1.0  # in units of the latents' spread
ITERATIONS = 1500
BATCH_SIZE = 256
LEARNING_RATE = 0.01  # Adam's, at its highest


class PairedEnergy(Aligner):
    """Ridge regression, and from there ``steps`` steps of ``step_size`` up a score of standardised latents."""

    kind = "energy_paired"

    def __init__(self, width: int, hidden: list[int], steps: int, step_size: float) -> None:
        super().__init__(width=width, hidden=hidden, steps=steps, step_size=step_size)
        self.steps, self.step_size = steps, step_size
        self.start = Ridge(width)
        self.centre = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.network = EnergyNetwork(width, hidden, "smooth_leaky_relu").requires_grad_(False)

    def move(self, features: Tensor) -> Tensor:
        start = (self.start.move(features) - self.centre) / self.scale
        return self.network.differentiable_walk(start, self.steps, self.step_size) * self.scale + self.centre


def fit_paired_energy(
    old: Tensor,
    new: Tensor,
    strength: float = RIDGE_STRENGTH,
    iterations: int = ITERATIONS,
    seed: int = 0,
    show_progress: bool = True,
) -> PairedEnergy:
    """The walk from ``new`` (R, D) that comes nearest to ``old`` (R, D) in mean squared distance.

    Args:
        old: latents of the previous model.
        new: of the current model, for the same inputs.
        strength: of the ridge regression.
        iterations: of the training.
        seed: of the first weights and of the batches.
        show_progress: whether a progress bar is shown.

    Raises:
        MethodError: the latents are not pairs.
        ConfigError: the strength is not positive.
        DivergenceError: the network is no longer finite.
    """
    check_pairs(old, new)
    old, new = old.detach().float(), new.detach().float()
    with torch.inference_mode(False), torch.enable_grad():
        aligner = _begin(old, new, strength, seed)
        network = aligner.network.requires_grad_()
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=iterations, pct_start=0.1)
        for _ in trange(iterations, desc="paired energy", disable=not show_progress, leave=False):
            rows = torch.randint(len(old), (BATCH_SIZE,), generator=generator).to(old.device)
            loss = ((aligner.move(new[rows]) - old[rows]) / aligner.scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.requires_grad_(False)
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise DivergenceError(
            f"The paired energy is not finite after {iterations} iterations. Some latents lie very far from the "
            "others: look at the current model's losses, or align by ridge regression."
        )
    aligner.provenance = {"strength": strength, "iterations": iterations, "seed": seed, "latents": len(old)}
    return aligner


def _begin(old: Tensor, new: Tensor, strength: float, seed: int) -> PairedEnergy:
    """The aligner before training: a flat score, so that it moves what ridge regression moves and nothing else."""
    with seeded(seed):
        aligner = PairedEnergy(old.shape[1], list(HIDDEN), STEPS, STEP_SIZE)
        nn.init.zeros_(cast("nn.Linear", aligner.network.layers[-1]).weight)
    aligner = aligner.to(old.device)
    aligner.start = fit_ridge(old, new, strength)
    spread = aligner.start(new) - old.mean(dim=0)
    aligner.centre.copy_(old.mean(dim=0))
    aligner.scale.copy_(spread.square().mean().sqrt().clamp(min=torch.finfo(spread.dtype).tiny))
    return aligner
