"""How much each parameter matters to what a detector says: measured image by image, kept beside the model.

EWC and MAS differ in what they differentiate and in what they make of the derivative; the rest is here. The classifier
is left out: it grows with the tasks, and what its rows say of a class is what the class's own images taught them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from incdet.losses.quadratic import quadratic_penalty
from incdet.tensors import load_tensors, save_tensors

KIND = "importance"

T = TypeVar("T")


class Anchors:
    """Where a detector's important parameters were, and what it costs to leave.

    No price is higher (ours) than the one at which a step of gradient descent takes a parameter all the way back:
    beyond it every step would overshoot further. Importances differ by orders of magnitude, and a weight that is right
    for most of them lets the papers' penalties diverge on the largest.

    Args:
        detector: as the task before left it.
        importance: by the parameters' names, on any device.
        weight: of all importances.
        rate: the largest learning rate of the task.
    """

    def __init__(self, detector: Any, importance: Mapping[str, Tensor], weight: float, rate: float) -> None:
        parameters = dict(detector.named_parameters())
        highest = 1 / (2 * rate) if rate else math.inf
        self.places = {name: parameters[name].detach().clone() for name in importance}
        self.prices = {
            name: (weight * value).clamp(max=highest).to(self.places[name].device) for name, value in importance.items()
        }

    def penalty(self, detector: Any) -> Tensor:
        """The squared distances of the detector's parameters from their anchors, each times its price."""
        return quadratic_penalty(dict(detector.named_parameters()), self.places, self.prices)


def shared_parameters(detector: Any) -> dict[str, nn.Parameter]:
    """The parameters that train and serve all classes: those outside of the classifier, by name."""
    own = {id(parameter) for parameter in detector.classifier.parameters()}
    return {name: p for name, p in detector.named_parameters() if p.requires_grad and id(p) not in own}


def own_logits(logits: Tensor, num_old: int, multi_head: bool) -> Tensor:
    """The logits (R, K) that belong to a task's own images: with one head per task, its own head's."""
    return logits[:, num_old:] if multi_head else logits


def draw(images: Sequence[T], count: int, seed: int) -> list[T]:
    """At most ``count`` images, in an order that the seed decides."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [images[index] for index in order[:count].tolist()]


def measure(
    parameters: Mapping[str, nn.Parameter],
    images: Iterable[T],
    score: Callable[[T], Tensor],
    magnitude: Callable[[Tensor], Tensor],
    average: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean over images of ``magnitude(d score(image) / d parameter)``, by name.

    Args:
        parameters: by name.
        images: this process's share of them, in whatever form ``score`` takes.
        score: of one image, a scalar with gradients.
        magnitude: elementwise, not negative.
        average: the mean over all processes.

    Returns:
        The importance of the parameters that any score depends on, each of its parameter's shape.
    """
    if not parameters:  # everything is frozen
        return {}
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = 0
    for image in images:
        gradients = torch.autograd.grad(score(image), list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += magnitude(gradient)
        count += 1
    share = average(torch.tensor(float(count), device=next(iter(sums.values())).device))
    means = {name: average(total) / share for name, total in sums.items()}
    return {name: mean for name, mean in means.items() if mean.any()}


def add_importance(earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum over tasks, on the CPU; a parameter that was frozen in one of them has what the others gave it."""
    total = {name: weight.cpu() for name, weight in new.items()}
    return total | {name: weight + total[name] if name in total else weight for name, weight in earlier.items()}


def save_importance(path: Path, importance: Mapping[str, Tensor]) -> None:
    save_tensors(path, KIND, importance, None)


def load_importance(path: Path) -> dict[str, Tensor]:
    """What ``save_importance`` wrote, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    remedy = "It is written at that task's end: delete its result.json and run --resume."
    return load_tensors(path, KIND, remedy)[0]
