"""Directions of a layer's inputs that an update must leave alone: what they are, and how they are removed.

A layer computes W x with W (o, d); a convolution is such a layer on flattened patches, d = C * kh * kw. An update D of
the weights with D x = 0 for every old input x leaves all old outputs as they were. Old inputs are described by their
uncentred second moment E[x x^T] (d, d) or by samples, and the directions that hold most of its energy (its trace) are
protected.

Shapes: g groups of a grouped convolution (1 elsewhere), o outputs of a group, d inputs of a group, k directions. A
*basis* is (g, k, d): orthonormal rows, and rows of zeros where a group needs fewer directions than another.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Conv2d | nn.Linear


def layers_of(module: nn.Module) -> Iterator[tuple[str, Layer]]:
    """The layers of a network whose weights train and whose updates can be projected, by name."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and part.weight.requires_grad:
            yield name, part


def input_patches(layer: Layer, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """What the layer's weights are multiplied with, at ``count`` places drawn at random: (g, count, d).

    Args:
        layer: a convolution, grouped or not, or a linear layer.
        x: its input, (N, C, h, w) or (..., d).
        count: at most so many places; all of them where there are fewer.
        generator: on the CPU.
    """
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows[_draw(len(rows), count, generator).to(x.device)][None]
    windows = _windows(layer, x)  # a view (N, C, h', w', kh, kw): nothing is copied but what is drawn
    images, _, height, width = windows.shape[:4]
    picks = _draw(images * height * width, count, generator).to(x.device)
    image, place = picks // (height * width), picks % (height * width)
    patches = windows[image, :, place // width, place % width]  # (count, C, kh, kw)
    return patches.reshape(len(picks), layer.groups, -1).transpose(0, 1)


def as_matrix(layer: Layer, weight: Tensor) -> Tensor:
    """A weight of the layer's shape as one matrix per group: (g, o, d)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def leading_directions(moment: Tensor, energy: float) -> Tensor:
    """The fewest eigenvectors that hold at least a share ``energy`` of a second moment, scaled by their own root.

    Args:
        moment: (g, d, d), symmetric and positive semidefinite.
        energy: in (0, 1].

    Returns:
        (g, k, d): orthogonal rows r with ``sum r r^T`` the moment of the leading eigenvectors alone.
    """
    values, vectors = torch.linalg.eigh(moment)  # ascending
    values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
    before = values.cumsum(-1) - values  # the energy of the directions in front of each
    kept = (before < energy * values.sum(-1, keepdim=True)) & (values > _noise(values))
    scaled = (vectors * (values * kept).sqrt().unsqueeze(-2)).transpose(-1, -2)
    return scaled[:, : int(kept.sum(-1).max())].contiguous()


def basis_of(directions: Tensor) -> Tensor:
    """Orthogonal rows (g, k, d) at length one; rows of zeros stay."""
    return F.normalize(directions, dim=-1)


def remove(update: Tensor, basis: Tensor) -> Tensor:
    """What is left of an update (..., o, d) outside the span of a basis (..., k, d)."""
    return update - update @ basis.transpose(-1, -2) @ basis


def _noise(values: Tensor) -> Tensor:
    """Eigenvalues below this, (..., 1), are rounding: their eigenvectors mean nothing."""
    return values.amax(-1, keepdim=True) * values.shape[-1] * torch.finfo(values.dtype).eps


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(total, (count,), generator=generator) if count < total else torch.arange(total)


def _windows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Every window that the convolution looks at: a view (N, C, h', w', kh, kw) of the padded input."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)  # knows "same" and "valid" too
    for axis, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    return x
