"""What matching regions to targets needs beyond the libraries' own matchers, on every backend."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops.boxes import box_area

# A region that lies at least this much on an ignored box is neither positive nor negative. Ours; COCO's crowd rule
# uses the same measure (share of the region's own area) with the evaluation's IoU threshold.
IGNORE_OVERLAP = 0.5


def lies_on(regions: Tensor, ignored: Tensor) -> Tensor:
    """Which regions (r, 4) have at least ``IGNORE_OVERLAP`` of their own area on one of the ignored boxes (n, 4)."""
    if len(ignored) == 0:
        return torch.zeros(len(regions), dtype=torch.bool, device=regions.device)
    left_top = torch.max(regions[:, None, :2], ignored[None, :, :2])
    right_bottom = torch.min(regions[:, None, 2:], ignored[None, :, 2:])
    shared = (right_bottom - left_top).clamp(min=0).prod(dim=2)
    return (shared / box_area(regions)[:, None].clamp(min=1e-6)).amax(dim=1) >= IGNORE_OVERLAP


def rows_of(values: Tensor, rows: Tensor, empty: float = 0.0) -> Tensor:
    """``values[rows]``; where an image has no object, the constant that the unused rows take."""
    if len(values) == 0:
        return values.new_full((len(rows), *values.shape[1:]), empty)
    return values[rows]
