"""Directions of a layer's inputs that an update must leave alone: what they are, how they grow, how they are removed.

A layer computes W x with W (o, d); a convolution is such a layer on flattened patches, d = C * kh * kw. An update D of
the weights with D x = 0 for every old input x leaves all old outputs as they were. Old inputs are described by their
uncentred second moment E[x x^T] (d, d) or by samples, and the directions that hold most of its energy (its trace) are
protected.

Shapes: g groups of a grouped convolution (1 elsewhere), o outputs of a group, d inputs of a group, k directions. A
*basis* is (g, k, d): orthonormal rows, and rows of zeros where a group needs fewer directions than another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from scipy.linalg import eigh
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

Layer = nn.Conv2d | nn.Linear
BLOCK = 1024  # samples whose products are summed before they are added in double precision
STRIP = 512  # rows of a second moment that are computed at a time


def layers_of(module: nn.Module) -> Iterator[tuple[str, Layer]]:
    """The layers of a network whose weights train and whose updates can be projected, by name."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and part.weight.requires_grad:
            yield name, part


@contextmanager
def watched(network: nn.Module, look: Callable[[str, Layer, Tensor], None]) -> Iterator[None]:
    """Inside, ``look`` is given the name of a layer that trains, the layer, and what it is about to be applied to."""
    with ExitStack() as hooks:
        for name, layer in layers_of(network):
            hook = layer.register_forward_pre_hook(lambda layer, inputs, name=name: look(name, layer, inputs[0]))
            hooks.callback(hook.remove)
        yield


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


def grow_basis(basis: Tensor, samples: Tensor, threshold: float) -> Tensor:
    """GPM's rule: add what the basis lacks until it holds a share ``threshold`` of the samples' energy.

    Saha et al., ICLR 2021, eq. 8 and 9: the energy is that of all samples, not of what is left of them. The released
    code stops one direction earlier in the first task than in later ones; here the later tasks' rule holds throughout.
    Computed from the smaller Gram matrix of the samples, in double precision but for some products.

    Args:
        basis: (g, k, d); (g, 0, d) to begin with.
        samples: (g, n, d) inputs of the layer.
        threshold: in (0, 1].

    Returns:
        (g, k', d) with k' >= k, of the samples' type; its first rows are ``basis``.
    """
    known = basis.double()
    total, rest, energies, directions = _principal(samples, known, threshold)
    held = total - rest + energies.cumsum(-1) - energies  # before each direction is added
    needed = (held < threshold * total) & (energies > 0)
    count = int(needed.sum(-1).max())
    fresh, needed = directions[:, :count], needed[:, :count, None]
    # Once more, for the directions of little energy are neither quite outside the basis nor quite orthogonal.
    fresh, _ = torch.linalg.qr((remove(fresh, known) * needed).transpose(1, 2))
    return torch.cat([basis.to(samples), (fresh.transpose(1, 2) * needed).to(samples)], dim=1)


def free_share(bases: Iterable[Tensor]) -> float:
    """Of all dimensions of the layers' inputs, how many lie outside their bases."""
    protected, dimensions = 0.0, 0
    for basis in bases:
        protected += basis.square().sum().item()
        dimensions += basis.shape[0] * basis.shape[2]
    return 1 - protected / dimensions


def remove(update: Tensor, basis: Tensor) -> Tensor:
    """What is left of an update (..., o, d) outside the span of a basis (..., k, d)."""
    return update - update @ basis.transpose(-1, -2) @ basis


@contextmanager
@torch.no_grad()
def projected(parameters: Mapping[str, nn.Parameter], bases: Mapping[str, Tensor]) -> Iterator[None]:
    """What changes inside in the weights of layers loses its part in the span of the layers' bases.

    Args:
        parameters: by name; those that are not ``<layer>.weight`` of a layer with a basis change as they do.
        bases: (g, k, d), by the name of the layer.
    """
    layers = {name.removesuffix(".weight"): parameter for name, parameter in parameters.items()}
    weights = [(weight, bases[layer]) for layer, weight in layers.items() if layer in bases]
    before = [weight.detach().clone() for weight, _ in weights]
    yield
    for (weight, basis), old in zip(weights, before, strict=True):
        update = (weight - old).view(len(basis), -1, basis.shape[2])
        weight.copy_(old + remove(update, basis).view_as(weight))


def _principal(samples: Tensor, basis: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The energy of samples (g, n, d), and the principal axes of their part outside a basis that may be needed.

    Returns:
        The energy (g, 1), that of the part (g, 1), and the axes' energies (g, r), best first, and directions (g, r, d).
        A group with fewer axes than another has zeros in their place.
    """
    few = samples.shape[1] < samples.shape[2]
    if few:
        part = remove(samples.double(), basis)
        total, matrix = samples.double().square().sum((1, 2)), part @ part.transpose(1, 2)
    else:
        moment = _second_moment(samples, (1 - threshold) / samples.shape[2])
        total, matrix = _trace(moment), remove(remove(moment, basis).transpose(1, 2), basis)
    # What is left at the size of the samples' own rounding is no direction of theirs. And of axes that hold less than
    # an equal part of what may be missing none is needed: all of them together do not hold what may be missing.
    rounding = max(torch.finfo(samples.dtype).eps ** 2, torch.finfo(matrix.dtype).eps) * samples.shape[2]
    energies, axes = _leading(matrix, total * max(rounding, (1 - threshold) / matrix.shape[1]))
    directions = F.normalize(axes @ part, dim=2) if few else axes
    return total[:, None], _trace(matrix)[:, None], energies, directions


def _leading(matrix: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (g, r) above the least (g,) of symmetric matrices (g, d, d), falling, and eigenvectors (g, r, d).

    By LAPACK's search for a part of the spectrum, which torch does not offer: thrice as fast as all of it.
    """
    pairs = [
        eigh(one, subset_by_value=(bound, math.inf))
        for one, bound in zip(matrix.cpu().numpy(), least.tolist(), strict=True)
    ]
    values = pad_sequence([torch.from_numpy(found[::-1].copy()) for found, _ in pairs], batch_first=True)
    vectors = pad_sequence([torch.from_numpy(found.T[::-1].copy()) for _, found in pairs], batch_first=True)
    return values.to(matrix), vectors.to(matrix)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _second_moment(samples: Tensor, share: float) -> Tensor:
    """The sum of x x^T (g, d, d) over samples (g, n, d), in double precision.

    The products of a block are in the samples' own precision, twice as fast, where its rounding is far below the least
    share of the energy that counts.
    """
    groups, _, width = samples.shape
    dtype = samples.dtype if share > 10 * torch.finfo(samples.dtype).eps else torch.float64
    moment = samples.new_zeros(groups, width, width, dtype=torch.float64)
    for block in (part.to(dtype) for part in samples.split(BLOCK, dim=1)):
        for start in range(0, width, STRIP):  # the upper half alone: it is all the work there is
            rows = slice(start, start + STRIP)
            moment[:, rows, start:] += block[:, :, rows].transpose(1, 2) @ block[:, :, start:]
    return moment.triu() + moment.triu(1).transpose(1, 2)


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
