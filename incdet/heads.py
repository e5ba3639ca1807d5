"""Growing and cutting a linear predictor when the classes change."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize


class CosineLinear(nn.Linear):
    """Logits ``scale * cos(feature, class weight)``, without a bias (Hou et al., LUCIR, CVPR 2019, eq. 4).

    Attributes:
        scale: a learned scalar, 1 at first, shared by all classes.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.cosines(features)

    def cosines(self, features: Tensor) -> Tensor:
        """Of each feature (R, D) and each class weight: (R, K)."""
        return linear(normalize(features, dim=1), normalize(self.weight, dim=1))


def grow_cosine(layer: CosineLinear, rows: int) -> CosineLinear:
    """A copy with ``rows`` new classes after the others, which keep their bits; new weights as torch draws them."""
    grown = CosineLinear(layer.in_features, layer.out_features + rows).to(layer.weight)
    with torch.no_grad():
        grown.weight[: layer.out_features] = layer.weight
        grown.scale.copy_(layer.scale)
    return grown


def grow_linear(layer: nn.Linear, rows: int, at: int, std: float) -> nn.Linear:
    """A copy of ``layer`` with ``rows`` new outputs inserted before output ``at``; the others keep their bits.

    Args:
        layer: a linear layer with a bias.
        rows: how many outputs to add.
        at: where they go; the outputs from ``at`` on move up.
        std: deviation of the new weights (detectron2: 0.01 for classes, 0.001 for boxes). New biases are zero.
    """
    grown = nn.Linear(
        layer.in_features, layer.out_features + rows, device=layer.weight.device, dtype=layer.weight.dtype
    )
    new = torch.empty(rows, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype).normal_(0.0, std)
    with torch.no_grad():
        grown.weight.copy_(torch.cat([layer.weight[:at], new, layer.weight[at:]]))
        grown.bias.copy_(torch.cat([layer.bias[:at], layer.bias.new_zeros(rows), layer.bias[at:]]))
    return grown


def keep_rows(layer: nn.Linear, rows: list[int]) -> nn.Linear:
    """A copy of ``layer``, of whatever kind, with only these outputs, in this order."""
    kept = copy.deepcopy(layer)
    kept.out_features = len(rows)
    kept.weight = nn.Parameter(layer.weight.detach()[rows])
    if layer.bias is not None:
        kept.bias = nn.Parameter(layer.bias.detach()[rows])
    return kept
