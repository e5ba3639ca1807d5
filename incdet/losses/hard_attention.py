"""Hard attention to the task: the masks' arithmetic (Serra et al., ICML 2018).

Shapes: d_l units of layer l. ``smax`` is the largest scale; at that scale a mask is nearly binary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

STEEPEST = 50.0  # beyond this argument a hyperbolic cosine would overflow (release)


def annealed_scale(batch: int, batches: int, smax: float) -> float:
    """The scale of a batch of an epoch, from 1 / smax in the first to smax in the last (eq. 3).

    Args:
        batch: counted from 0.
        batches: of the epoch.
        smax: the largest scale.
    """
    share = batch / (batches - 1) if batches > 1 else 1.0
    return 1 / smax + (smax - 1 / smax) * share


def compensated(gradient: Tensor, embedding: Tensor, scale: float, smax: float) -> Tensor:
    """An embedding's gradient as if the mask were ``sigmoid(e)`` times smax, whatever the scale is now (eq. 6).

    Args:
        gradient: (d,) through ``sigmoid(scale * e)``.
        embedding: (d,), e.
        scale: of the batch.
        smax: the largest scale.
    """
    steep = (scale * embedding).clamp(-STEEPEST, STEEPEST).cosh() + 1
    return gradient * (smax / scale) * steep / (embedding.cosh() + 1)


def mask_cost(masks: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> Tensor:
    """How much a task claims of what the tasks before it left: ``sum a (1 - u) / sum (1 - u)`` over all units (eq. 5).

    Args:
        masks: (d_l,) of the task, a, by layer.
        used: (d_l,) the largest mask that any task before had, u; zeros in the first.
    """
    claimed = torch.stack([(mask * (1 - used[name])).sum() for name, mask in masks.items()]).sum()
    free = torch.stack([(1 - used[name]).sum() for name in masks]).sum()
    return claimed / free.clamp(min=torch.finfo(free.dtype).tiny)


def free_weights(shape: Sequence[int], used_out: Tensor, used_in: Tensor | None) -> Tensor:
    """The share of each weight's update that no earlier task minds: ``1 - min(u_out, u_in)`` (eq. 2).

    Args:
        shape: of the weights: (d_l, d_l-1), or (d_l, d_l-1 / groups, kh, kw) of a convolution.
        used_out: (d_l,) of the units that the weights make.
        used_in: (d_l-1,) of the units that they read; None = the image, which every task reads.

    Returns:
        Broadcasts to ``shape``: all places of a kernel have one share.
    """
    used = used_out[:, None]
    if used_in is not None:
        read = used_in.view(-1, shape[1])  # by each group of the outputs
        used = torch.minimum(used, read.repeat_interleave(len(used_out) // len(read), dim=0))
    return 1 - used.view(*used.shape, *[1] * (len(shape) - 2))
