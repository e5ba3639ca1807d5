"""Bridge Past and Future: likely objects of the future, and distillation from two teachers (Mo et al., ECCV 2024).

Shapes: R regions; K_old classes of the old detector, K_new of the interim one, K = K_old + K_new of the student. The
background is the last column of all logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from incdet.losses.attention import spatial_attention
from incdet.losses.distillation import mean_or_zero, student_old_deltas

CELLS = 7  # attention is averaged over so many samples along each side of a box (release)


# ---------------------------------------------------------------------- the future


@torch.no_grad()
def box_attention(levels: Iterable[Tensor], boxes: list[Tensor], image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """How strong the features are in each box: the mean of their spatial attention in it, and over the levels (ours).

    Args:
        levels: feature maps (N, C, h, w), each of a stride that is a power of two.
        boxes: per image (r, 4), in pixels.
        image_sizes: (height, width) of each image, before padding.

    Returns:
        (R,) for the boxes of all images; one on features that are equally strong everywhere.
    """
    height = max(size[0] for size in image_sizes)
    means = []
    for features in levels:
        scale = 2.0 ** round(math.log2(features.shape[-2] / height))
        attention = roi_align(spatial_attention(features)[:, None], boxes, CELLS, scale, sampling_ratio=1, aligned=True)
        means.append(attention.mean(dim=(1, 2, 3)))
    return torch.stack(means).mean(dim=0)


def likely_future(objectness: Tensor, attention: Tensor, overlap: Tensor, share: float, far: float) -> Tensor:
    """Which negatives (n,) of an image may be objects that nobody has named yet.

    Args:
        objectness: (n,) anything that orders as the objectness does.
        attention: (n,) see ``box_attention``.
        overlap: (n,) the largest IoU with a labelled object.
        share: of the negatives; a likely object is in this share of them by objectness and also by attention.
        far: only negatives with less overlap than this are chosen.
    """
    count = int(len(objectness) * share)
    return _in_top(objectness, count) & _in_top(attention, count) & (overlap < far)


def largest_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The IoU (n,) of each box (n, 4) with that of the others (m, 4) which it overlaps most; 0 where there is none."""
    return box_iou(boxes, others).amax(dim=1) if len(others) else boxes.new_zeros(len(boxes))


def _in_top(values: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    chosen[values.topk(count).indices] = True
    return chosen


# ---------------------------------------------------------------------- two teachers


def bridged_targets(old: Tensor, interim: Tensor, is_new: Tensor) -> Tensor:
    """One distribution of two teachers: one is believed, the other says what the first one's background holds.

    Args:
        old: (R, K_old + 1) logits of the old detector.
        interim: (R, K_new + 1) logits of the interim detector.
        is_new: (R,) bool, the region lies on a labelled new object: there the interim detector is believed.

    Returns:
        (R, K + 1) probabilities, each row summing to one.
    """
    old, interim = old.softmax(dim=1), interim.softmax(dim=1)
    believing_old = torch.cat([old[:, :-1], old[:, -1:] * interim], dim=1)
    in_background = interim[:, -1:] * old
    believing_interim = torch.cat([in_background[:, :-1], interim[:, :-1], in_background[:, -1:]], dim=1)
    return torch.where(is_new[:, None], believing_interim, believing_old)


def bridged_classification(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the student's softmax, averaged over regions and over columns as in the release.

    Args:
        student: (R, K + 1) logits.
        targets: (R, K + 1) probabilities.
    """
    return mean_or_zero(-targets * student.log_softmax(dim=1))


def bridged_boxes(student: Tensor, old: Tensor, interim: Tensor, is_new: Tensor, num_old: int) -> Tensor:
    """Squared distance of the believed teacher's boxes, summed over coordinates, averaged over its classes and regions.

    Args:
        student: (R, K, 4) deltas, or (R, 1, 4) where boxes are class-agnostic; so also the teachers'.
        old: (R, K_old, 4).
        interim: (R, K_new, 4).
        is_new: (R,) bool, see ``bridged_targets``.
        num_old: K_old.
    """
    new_deltas = student if student.shape[1] == 1 else student[:, num_old:]
    to_old = (student_old_deltas(student, num_old) - old).square().sum(dim=2).mean(dim=1)
    to_interim = (new_deltas - interim).square().sum(dim=2).mean(dim=1)
    return mean_or_zero(torch.where(is_new, to_interim, to_old))
