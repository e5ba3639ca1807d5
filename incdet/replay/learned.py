"""Exemplars whose pixels are learned (Liu et al., Mnemonics Training, CVPR 2020).

The pixels of n exemplars lie in a ``Batch``, each (3, h, w) in [0, 1] and each of its own size; *queries* are the
labelled images that they are to stand for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize, one_hot

from incdet.structures import Batch

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters, Batch], Tensor]  # of a model with these parameters on labelled images
Features = Callable[[Batch], tuple[Tensor, Tensor]]  # of labelled images: (n, D), and their labels (n,)
Objective = Callable[[Batch, Batch], Tensor]  # (exemplars, queries) -> what the exemplars' pixels are to minimise


class PixelModel(nn.Module):
    """A copy of a detector through which gradients reach the pixels; the detector itself is not touched.

    Attributes:
        trained: the parameters that the detector trains, by name, as leaves of their own.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.trained = {
            f"detector.{name}": parameter.detach().clone().requires_grad_()
            for name, parameter in detector.named_parameters()
            if parameter.requires_grad
        }
        self.detector = copy.deepcopy(detector).eval()
        self.detector.freeze(0, norm=True)  # stages that are frozen compute no gradients at all
        self.detector.requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        """The detector's own loss of its regions."""
        losses = self.detector.region_losses(self.detector.region_pass(self.detector.image_pass(batch)))
        return torch.stack(list(losses.values())).sum()

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        """The same with other parameters."""
        return functional_call(self, dict(parameters), (batch,))

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The regions' features (n, D) and labels (n,)."""
        regions = self.detector.region_pass(self.detector.image_pass(batch))
        return regions.features, regions.labels


def unrolled(loss: Loss, parameters: Parameters, exemplars: Batch, steps: int, rate: float) -> dict[str, Tensor]:
    """The parameters after gradient steps on the exemplars, as a function of their pixels (eq. 8).

    Args:
        loss: twice differentiable.
        parameters: that require gradients.
        exemplars: the loss of all of them is one step's.
        steps: how many.
        rate: of the steps.
    """
    moved = dict(parameters)
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(moved, exemplars), list(moved.values()), create_graph=True)
        moved = {
            name: value - rate * gradient for (name, value), gradient in zip(moved.items(), gradients, strict=True)
        }
    return moved


def bilevel_objective(loss: Loss, parameters: Parameters, steps: int, rate: float) -> Objective:
    """The queries' loss of a model that took gradient steps on the exemplars (eq. 9 and 10)."""
    return lambda exemplars, queries: loss(unrolled(loss, parameters, exemplars, steps, rate), queries)


def prototype_loss(features: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor, classes: int) -> Tensor:
    """Cross-entropy of the cosines between queries and the classes' mean features: what the release minimises.

    Args:
        features: (n, D) of exemplars.
        labels: (n,) theirs.
        queries: (m, D) features.
        query_labels: (m,).
        classes: how many there are.
    """
    members = one_hot(labels, classes).to(features.dtype)
    means = members.T @ features / members.sum(dim=0).clamp(min=1).unsqueeze(1)
    return cross_entropy(normalize(queries, dim=1) @ normalize(means, dim=1).T, query_labels)


def prototype_objective(features: Features, known: Batch, classes: int) -> Objective:
    """``prototype_loss`` with the means of the exemplars and of ``known`` ones, which are not learned."""
    fixed = [tuple(part.detach() for part in features(known))] if len(known) else []

    def objective(exemplars: Batch, queries: Batch) -> Tensor:
        found, labels = (torch.cat(parts) for parts in zip(*fixed, features(exemplars), strict=True))
        return prototype_loss(found, labels, *features(queries), classes)

    return objective


def halved_rates(rate: float, epochs: int, steps: int, halve_every: int) -> list[float]:
    """The learning rate of each step: of ``steps`` to an epoch, half as high after every so many epochs."""
    return [rate * 0.5 ** (step // (steps * halve_every)) for step in range(epochs * steps)]


def learn_pixels(
    exemplars: Batch,
    queries: Iterable[Batch],
    objective: Objective,
    rates: Sequence[float],
    count: int,
    generator: torch.Generator,
) -> Batch:
    """The exemplars after steps on their pixels, which stay in [0, 1].

    The steps are Adam's (ours): a model that knows the queries well leaves gradients that differ by orders of magnitude
    from task to task, and plain steps that move anything in one task destroy the exemplars in the next.

    Args:
        exemplars: where they begin.
        queries: one batch per step.
        objective: its gradient is a step's direction.
        rates: of each step, in pixels' values: about the most that a pixel moves.
        count: how many exemplars, drawn anew, a step is taken on.
        generator: of what is drawn.
    """
    pixels = [image.detach().clone().requires_grad_() for image in exemplars.images]
    learned = replace(exemplars, images=pixels)
    optimizer = torch.optim.Adam(pixels, lr=0.0)
    for rate, batch in zip(rates, queries, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        objective(draw(learned, count, generator), batch).backward()
        optimizer.step()
        with torch.no_grad():
            for image in pixels:
                image.clamp_(0, 1)
    return replace(exemplars, images=[image.detach() for image in pixels])


def draw(batch: Batch, count: int, generator: torch.Generator) -> Batch:
    """At most ``count`` of a batch's labelled images, drawn without replacement; gradients reach the batch."""
    if batch.targets is None:
        raise ValueError("exemplars need targets")
    rows = torch.randperm(len(batch), generator=generator)[:count].tolist()
    return Batch([batch.images[row] for row in rows], [batch.targets[row] for row in rows])
