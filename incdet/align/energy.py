"""The energy network of ELI (Joseph et al., CVPR 2022) and its walk, exact and without autograd.

The network's output is called the *score*. It is the negative energy: higher means more familiar, more like a latent of
the previous model. A walk moves each latent uphill a fixed number of times: ``z <- z + step_size * d score / d z``. The
released code calls it Langevin dynamics but adds no noise, and neither does this.

Every step lies in the row space of the first layer's weight W (h, D). With its pre-activations ``a = W z + b`` and
``g = d score / d a``, the whole walk therefore runs on h numbers per row, ``a <- a + step_size * G g`` with the Gram
matrix ``G = W W^T``, and the latent is moved once, at the end, by ``step_size * W^T (sum of all g)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

from incdet.align.base import Aligner

SLOPE = 0.2  # of LeakyReLU below zero, as released


def _leaky_relu(inputs: Tensor) -> Tensor:
    return leaky_relu(inputs, SLOPE)


def _leaky_relu_backward(gradient: Tensor, inputs: Tensor) -> Tensor:
    # Autograd's own kernel: torch.where on so irregular a mask would take longer than all the rest of the walk.
    return torch.ops.aten.leaky_relu_backward(gradient, inputs, SLOPE, False)


def _smooth_leaky_relu(inputs: Tensor) -> Tensor:
    return SLOPE * inputs + (1 - SLOPE) * softplus(inputs)


def _smooth_leaky_relu_backward(gradient: Tensor, inputs: Tensor) -> Tensor:
    return gradient * (SLOPE + (1 - SLOPE) * inputs.sigmoid())


# name: (the activation, its gradient times another). The smooth one is ours: where a walk itself is trained, LeakyReLU,
# whose second derivative is zero, teaches it nothing about which of its sides a step should be on.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "leaky_relu": (_leaky_relu, _leaky_relu_backward),
    "smooth_leaky_relu": (_smooth_leaky_relu, _smooth_leaky_relu_backward),
}


class EnergyNetwork(nn.Module):
    """Linear layers from D to one score with an activation between them; without hidden layers it is linear.

    Args:
        width: D.
        hidden: width of each hidden layer, first to last.
        activation: of ``ACTIVATIONS``; LeakyReLU as released.
    """

    def __init__(self, width: int, hidden: Sequence[int], activation: str = "leaky_relu") -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise((width, *hidden, 1)))
        self._activate, self._activate_backward = ACTIVATIONS[activation]

    def forward(self, features: Tensor) -> Tensor:
        """The score of each row, (R,)."""
        first, *others = self._linears()
        values = first(features)
        for layer in others:
            values = layer(self._activate(values))
        return values.squeeze(1)

    @torch.no_grad()
    def walk(self, features: Tensor, steps: int, step_size: float) -> Tensor:
        """The features (R, D) after ``steps`` steps uphill: :func:`autograd_walk`, to rounding.

        Where a LeakyReLU's input is zero to rounding, either slope may be taken, here as there; the row then differs.
        """
        return self.differentiable_walk(features, steps, step_size)

    def differentiable_walk(self, features: Tensor, steps: int, step_size: float) -> Tensor:
        """The same walk; its end may be differentiated with respect to the network's parameters."""
        first, *others = self._linears()
        if not others:  # a linear score climbs the same way from everywhere
            return features + steps * step_size * first.weight
        gram = first.weight @ first.weight.T
        values = first(features)
        total = torch.zeros_like(values)
        for _ in range(steps):
            gradient = self._hidden_gradient(values)
            total = total + gradient
            values = torch.addmm(values, gradient, gram, alpha=step_size)
        return torch.addmm(features, total, first.weight, alpha=step_size)

    def _hidden_gradient(self, values: Tensor) -> Tensor:
        """The gradient of the score with respect to ``values``, the first hidden layer's pre-activations (R, h)."""
        _, *inner, last = self._linears()
        inputs = [values]  # of each activation
        for layer in inner:
            inputs.append(layer(self._activate(inputs[-1])))
        gradient = self._activate_backward(last.weight.expand_as(inputs[-1]), inputs[-1])
        for layer, before in zip(reversed(inner), reversed(inputs[:-1]), strict=True):
            gradient = self._activate_backward(gradient @ layer.weight, before)
        return gradient

    def _linears(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))


def autograd_walk(network: nn.Module, features: Tensor, steps: int, step_size: float) -> Tensor:
    """The walk by its definition, for any network that scores rows: the reference for the exact one."""
    with torch.inference_mode(False), torch.enable_grad():
        features = features.detach().clone()
        for _ in range(steps):
            features.requires_grad_()
            (gradient,) = torch.autograd.grad(network(features).sum(), features)
            features = (features + step_size * gradient).detach()
    return features


class EnergyAligner(Aligner):
    """ELI: ``steps`` steps of ``step_size`` up the score of a fitted network, which is not trained any further.

    Attributes:
        threshold: the score above which a feature counts as familiar, a scalar.
    """

    kind = "energy"
    threshold: Tensor

    def __init__(self, width: int, hidden: Sequence[int], steps: int, step_size: float) -> None:
        super().__init__(width=width, hidden=list(hidden), steps=steps, step_size=step_size)
        self.steps, self.step_size = steps, step_size
        self.network = EnergyNetwork(width, hidden).requires_grad_(False)
        self.register_buffer("threshold", torch.zeros(()))

    def move(self, features: Tensor) -> Tensor:
        return self.network.walk(features, self.steps, self.step_size)

    @torch.no_grad()
    def is_familiar(self, features: Tensor) -> Tensor:
        """Which rows of (R, D) score above the threshold, (R,) bool."""
        with torch.autocast(features.device.type, enabled=False):
            return self.network(features.to(self.dtype)) > self.threshold
