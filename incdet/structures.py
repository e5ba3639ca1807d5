"""The typed values that flow between the parts.

Shape glossary
--------------
N  images in a batch            A  anchors of one image, all levels together
R  regions of a whole batch     D  width of a region's feature after the box head
K  classes known to the model   n  objects in one image

Conventions, everywhere in incdet
---------------------------------
- Boxes are ``(n, 4)`` float32 ``x1, y1, x2, y2`` in absolute pixels, continuous coordinates: the left edge of the
  image is 0, its right edge is its width, and a box's width is ``x2 - x1``.
- Labels are int64 in ``[0, K)`` and follow the order in which the stream teaches the classes.
- In any logits the background is the **last** column, K. K grows with the tasks.

A backend converts at its own boundary; nothing outside a backend knows the library's convention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

IGNORED = -1
_PER_BOX = ("boxes", "labels", "weights", "use_rpn", "use_roi")  # the fields of a Target with a row for each box


@dataclass(frozen=True)
class Target:
    """What the detector is asked to find in one image.

    A box that a stage does not *use* is ignored there: regions that lie on it count neither as positive nor as
    negative. Boxes used by neither stage are how ``difficult`` and crowd objects, and uncertain teacher detections,
    are kept from being taught as background.
    """

    boxes: Tensor  # (n, 4) in the pixels of the image tensor beside it
    labels: Tensor  # (n,)
    weights: Tensor  # (n,) scales the region losses of the regions matched to the box
    use_rpn: Tensor  # (n,) bool
    use_roi: Tensor  # (n,) bool
    labelled: frozenset[int] | None = None  # classes of which every object is among the boxes; None = all classes

    @classmethod
    def from_boxes(cls, boxes: Tensor, labels: Tensor) -> Target:
        """Plain ground truth: every box used by both stages with weight one."""
        used = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        return cls(boxes, labels, torch.ones_like(labels, dtype=torch.float32), used, used.clone())

    def select(self, keep: Tensor) -> Target:
        """The target with the objects that ``keep`` (mask or indices) picks."""
        return self._with_rows(lambda name: getattr(self, name)[keep])

    def with_ignored(self, boxes: Tensor) -> Target:
        """The target with boxes (m, 4) that no stage uses, after its own."""
        unused = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        weights = torch.ones_like(unused, dtype=torch.float32)
        return self.joined(Target(boxes, unused.long(), weights, unused, unused.clone()))

    def joined(self, other: Target) -> Target:
        """The target with another's objects after its own."""
        return self._with_rows(lambda name: torch.cat([getattr(self, name), getattr(other, name)]))

    def to(self, device: torch.device | str) -> Target:
        return self._with_rows(lambda name: getattr(self, name).to(device, non_blocking=True))

    def _with_rows(self, rows: Callable[[str], Tensor]) -> Target:
        boxes, labels, weights, use_rpn, use_roi = map(rows, _PER_BOX)
        return Target(boxes, labels, weights, use_rpn, use_roi, self.labelled)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """Images as they leave the loader, with what may be seen of their objects."""

    images: list[Tensor]  # each (3, h, w) float32 in [0, 1], RGB, not yet normalised
    targets: list[Target] | None  # None at prediction
    image_ids: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Batch:
        targets = None if self.targets is None else [target.to(device) for target in self.targets]
        return replace(self, images=[image.to(device, non_blocking=True) for image in self.images], targets=targets)

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class ImageOutputs:
    """What the detector computed of whole images, up to its proposals."""

    images: Any  # the backend's resized, normalised and padded images
    frozen_features: Any  # output of the stages that do not train
    features: dict[str, Tensor]  # level -> (N, C, h, w), after the neck
    objectness: Tensor  # (N, A) logits
    anchor_deltas: Tensor  # (N, A, 4)
    anchors: list[Tensor]  # N of (A, 4)
    propose: Callable[[], list[Tensor]]  # computes ``proposals`` when somebody asks for them
    image_sizes: list[tuple[int, int]]  # N of (h, w) after resizing, before padding
    targets: list[Target] | None = None  # boxes in the pixels of the resized image
    anchor_labels: Tensor | None = None  # (N, A) 1 positive, 0 negative, -1 not sampled or ignored
    anchor_targets: Tensor | None = None  # (N, A, 4) regression targets; meaningful where anchor_labels is 1

    @cached_property
    def proposals(self) -> list[Tensor]:
        """N of (r, 4), best first, in the pixels of the resized image. A teacher's are often not needed."""
        return self.propose()


@dataclass
class RegionOutputs:
    """What the detector computed of the regions of a batch."""

    pooled: Tensor  # (R, C, s, s) after ROI pooling, before the box head
    features: Tensor  # (R, D) after the box head (and the aligner), before the predictor
    logits: Tensor  # (R, K + 1)
    deltas: Tensor  # (R, K, 4), or (R, 1, 4) when boxes are class-agnostic
    boxes: Tensor  # (R, 4) in the pixels of the resized image
    image_index: Tensor  # (R,)
    labels: Tensor | None = None  # (R,) K = background, -1 = ignored
    delta_targets: Tensor | None = None  # (R, 4) meaningful where labels is a class
    weights: Tensor | None = None  # (R,)
    label_sets: Tensor | None = None  # (R, K) of a multi-label classifier: 1 present, 0 absent, IGNORED unknown

    def select(self, keep: Tensor) -> RegionOutputs:
        """The regions that ``keep`` (mask or indices) picks."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[keep] for name, value in values.items() if value is not None})

    def boxes_per_image(self, images: int) -> list[Tensor]:
        """The regions' boxes as one tensor per image, the form ``region_pass`` takes."""
        return [self.boxes[self.image_index == i] for i in range(images)]


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, in the pixels of the **original** image, best first."""

    boxes: Tensor  # (n, 4)
    scores: Tensor  # (n,) in [0, 1]
    labels: Tensor  # (n,)

    def cpu(self) -> Detections:
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())

    def above(self, score: float) -> Detections:
        """Only the detections that score at least ``score``."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])

    def __len__(self) -> int:
        return len(self.labels)
