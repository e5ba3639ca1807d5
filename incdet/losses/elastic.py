"""Elastic responses: which of a teacher's answers are worth keeping, and their box term (Feng et al., CVPR 2022).

"Elastic" means that the threshold is made of the answers themselves, anew in every image: their mean and a multiple of
their standard deviation. Shapes: r candidate boxes of one image, K_old classes of the teacher, S chosen answers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from incdet.losses.distillation import mean_or_zero
from incdet.structures import ImageOutputs


def stands_out(confidence: Tensor, deviations: float) -> Tensor:
    """Which answers are surer than the mean by more than ``deviations`` standard deviations: (r,) bool.

    Args:
        confidence: (r,) of the candidates of one image. By two deviations, none of fewer than six can stand out.
        deviations: 2 in the release.
    """
    if len(confidence) < 2:  # they have no deviation
        return torch.zeros_like(confidence, dtype=torch.bool)
    return confidence > confidence.mean() + deviations * confidence.std()


def choose_elastic_boxes(boxes: Tensor, confidence: Tensor, deviations: float, iou: float) -> tuple[Tensor, Tensor]:
    """The box answers that stand out, of which none overlaps a surer one of its class: rows (S,) and classes (S,).

    Args:
        boxes: (r, 4) that the answers belong to.
        confidence: (r, K_old); each row and class is an answer of its own.
        deviations: as in ``stands_out``.
        iou: two boxes of a class that overlap by more are one answer; 0.005 in the release.
    """
    chosen = stands_out(confidence.flatten(), deviations).view_as(confidence)
    rows, classes = torch.where(chosen)
    keep = batched_nms(boxes[rows], confidence[rows, classes], classes, iou)
    return rows[keep], classes[keep]


def confident_boxes(student: Tensor, teacher: Tensor, confidence: Tensor) -> Tensor:
    """Squared distance of box deltas, summed over the four and weighted by how sure the student is.

    The release weighs its divergence of edge distributions, which a two-stage detector lacks, in the same way.

    Args:
        student: (S, 4).
        teacher: the same of the previous detector.
        confidence: (S,) of the student; a weight, so nothing is learned through it.
    """
    return mean_or_zero(confidence.detach() * (student - teacher).square().sum(dim=1))


def elastic_proposals(student: ImageOutputs, teacher: ImageOutputs, deviations: float, iou: float) -> Tensor:
    """The same choice among anchors: squared distance of objectness logits, and the box term (ours).

    Anchors stand in for the boxes when overlaps are measured.

    Args:
        student: its anchors' logits and deltas learn.
        teacher: the same of the previous detector, whose objectness chooses.
        deviations: as in ``stands_out``.
        iou: as in ``choose_elastic_boxes``.
    """
    gaps, deltas, targets, weights = [], [], [], []
    for i, anchors in enumerate(teacher.anchors):
        confidence = teacher.objectness[i].sigmoid()
        chosen = stands_out(confidence, deviations)
        gaps.append((student.objectness[i] - teacher.objectness[i])[chosen])
        rows, _ = choose_elastic_boxes(anchors, confidence[:, None], deviations, iou)
        deltas.append(student.anchor_deltas[i, rows])
        targets.append(teacher.anchor_deltas[i, rows])
        weights.append(student.objectness[i, rows].sigmoid())
    boxes = confident_boxes(torch.cat(deltas), torch.cat(targets), torch.cat(weights))
    return mean_or_zero(torch.cat(gaps).square()) + boxes
