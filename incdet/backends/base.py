"""The interface that every detection backend offers to the engine and to the methods.

A step calls the stages one by one, so that a method sees, and may replace, what flows between them::

    images  = detector.image_pass(batch)               # backbone, RPN, proposals
    regions = detector.region_pass(images)             # sampled regions, box head, [align], predictor
    losses  = detector.losses(images, regions)

A teacher looks at the student's images and boxes, without targets: ``teacher.image_pass_like(images)`` and
``teacher.region_pass(its_images, boxes=regions.boxes_per_image(n))``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from incdet.backends.backbone import Body
from incdet.structures import Batch, Detections, ImageOutputs, RegionOutputs, Target

# What the predictor makes of region features: (R, D) -> logits (R, K + 1), deltas (R, K or 1, 4).
Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
# The slots of an aligner and of another reading of the features; both see features and the predictor, never targets.
RegionTransform = Callable[[Tensor, Predictor], Tensor]

BASE_LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")


def scale_of(boxes: Tensor, new: Sequence[int], old: Sequence[int]) -> Tensor:
    """The factors (4,) that take boxes from an image of size ``old`` (h, w) to the same image of size ``new``."""
    return boxes.new_tensor([new[1] / old[1], new[0] / old[0]]).repeat(2)


class Detector(nn.Module, ABC):
    """A two-stage detector whose stages can be called one by one and whose head grows."""

    backbone: Any
    multi_label = False  # a classifier that answers for every class by itself (``RegionOutputs.label_sets``)
    freeze_norm = False  # batch norms keep their statistics and their affine parameters
    region_transform: RegionTransform | None = None  # features -> aligned features
    read_out: RegionTransform | None = None  # features -> logits (R, K + 1), at prediction only

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes the head knows, the background not counted."""

    @property
    @abstractmethod
    def classifier(self) -> nn.Linear:
        """The layer that makes logits of region features, its rows in the library's order."""

    @property
    @abstractmethod
    def classifier_rows(self) -> list[int]:
        """The classifier's row of each logit: K + 1, background last."""

    @property
    @abstractmethod
    def box_head(self) -> nn.Module:
        """What makes region features of pooled ones."""

    @abstractmethod
    def image_pass(self, batch: Batch) -> ImageOutputs:
        """Everything up to the proposals; with targets, also the sampled anchors' labels.

        Args:
            batch: images and, for training, what may be seen of their objects.
        """

    @abstractmethod
    def image_pass_like(self, outputs: ImageOutputs, share_frozen: bool = False) -> ImageOutputs:
        """The images of another detector's pass through this one, without targets: how a teacher looks.

        Args:
            outputs: another detector's, on the same backend. Its resized images are used as they are.
            share_frozen: take its frozen features too, instead of computing the frozen stages again. Only right when
                ``shares_frozen_stages_with`` holds.
        """

    @abstractmethod
    def sample_regions(self, proposals: list[Tensor], targets: list[Target]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The regions to train on, per image (r, 4), and what ``RegionOutputs`` says of them."""

    @abstractmethod
    def pool(self, outputs: ImageOutputs, boxes: list[Tensor]) -> Tensor:
        """ROI pooling (R, C, s, s) of boxes, per image (r, 4) in the pixels of the resized image."""

    @abstractmethod
    def box_features(self, pooled: Tensor) -> Tensor:
        """Region features (R, D): the box head on pooled ones."""

    def region_pass(self, outputs: ImageOutputs, boxes: list[Tensor] | None = None) -> RegionOutputs:
        """The second stage on ``boxes``, else on sampled proposals (with targets) or on all proposals (without).

        Args:
            outputs: what ``image_pass`` returned.
            boxes: per image (r, 4) in the pixels of the resized image; they are used as they are, without labels.
        """
        sampled: dict[str, Tensor] = {}
        if boxes is None:
            boxes = outputs.proposals
            if outputs.targets is not None:
                boxes, sampled = self.sample_regions(boxes, outputs.targets)
        pooled = self.pool(outputs, boxes)
        features = self.box_features(pooled)
        if self.region_transform is not None:
            features = self.region_transform(features, self.predictor)
        logits, deltas = self.predictor(features)
        counts = torch.tensor([len(b) for b in boxes], device=features.device)
        image_index = torch.arange(len(boxes), device=features.device).repeat_interleave(counts)
        return RegionOutputs(pooled, features, logits, deltas, torch.cat(boxes), image_index, **sampled)

    @abstractmethod
    def losses(self, images: ImageOutputs, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        """The library's own losses under the names in ``BASE_LOSSES``, except those in ``skip``."""

    @abstractmethod
    def region_losses(self, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        """The second stage's part of ``losses``, of regions that need not come from an image."""

    @abstractmethod
    def predictor(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Region features (R, D) to logits (R, K + 1), background last, and deltas (R, K, 4) or (R, 1, 4)."""

    @abstractmethod
    def detections(
        self, outputs: ImageOutputs, logits: Tensor, deltas: Tensor, images: list[Tensor]
    ) -> list[Detections]:
        """What logits and deltas of all proposals come to, after NMS, in each image's own pixels."""

    def read(self, outputs: ImageOutputs) -> tuple[Tensor, Tensor]:
        """Logits and deltas of all proposals as they are predicted from: after the aligner, by the read-out."""
        regions = self.region_pass(outputs)
        if self.read_out is None:
            return regions.logits, regions.deltas
        return self.read_out(regions.features, self.predictor), regions.deltas

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[Detections]:
        """The objects in each image, in its own pixels. Takes no targets, so none can leak."""
        with self.evaluating():
            outputs = self.image_pass(Batch(images, targets=None))
            return self.detections(outputs, *self.read(outputs), images)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """In eval mode, and afterwards in the mode of before."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @torch.no_grad()
    def region_features(self, images: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        """Features (n, D) before the predictor of given boxes (n, 4), per image, in that image's own pixels."""
        with self.evaluating():
            outputs = self.image_pass(Batch(images, targets=None))
            sizes = zip(boxes, outputs.image_sizes, images, strict=True)
            resized = [box * scale_of(box, size, image.shape[-2:]) for box, size, image in sizes]
            return list(self.box_features(self.pool(outputs, resized)).split([len(box) for box in boxes]))

    @abstractmethod
    def expand_classes(self, count: int) -> None:
        """Add ``count`` classes to the head; the old logits and the background keep their bits."""

    @abstractmethod
    def drop_classes(self, count: int) -> None:
        """Forget the first ``count`` classes; the others and the background keep their bits."""

    @torch.no_grad()
    def start_from_background(self, count: int) -> None:
        """Let the last ``count`` classes take equal parts of what is called background (Cermelli et al., MiB, eq. 9).

        Their weights become the background's, and all biases its bias less ``log(count + 1)``: together they keep the
        probability that the background had.
        """
        *classes, background = self.classifier_rows
        weight, bias = self.classifier.weight, self.classifier.bias
        bias[background] -= math.log(count + 1)
        for row in classes[len(classes) - count :]:
            weight[row], bias[row] = weight[background], bias[background]

    def freeze(self, stages: int, norm: bool) -> None:
        """Keep the first ``stages`` stages of a shared backbone fixed, and, with ``norm``, every batch norm."""
        if (body := self._body()) is not None:
            body.freeze(stages)
        self.freeze_norms(norm)

    def freeze_norms(self, norm: bool) -> None:
        """Keep every batch norm fixed, its statistics and its affine parameters, or let those train that may."""
        self.freeze_norm = norm
        for module in self._norms() if norm else []:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        for module in self._norms():
            frozen = self.freeze_norm or not any(p.requires_grad for p in module.parameters())
            module.train(mode and not frozen)
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def _body(self) -> Body | None:
        """The stages of a shared backbone (``backends.backbone``); None where the backbone is the library's own."""
        return getattr(self.backbone, "body", None)

    def frozen_state(self) -> dict[str, Tensor]:
        """The parameters and buffers of the stages that ``frozen_features`` come from; empty when none is frozen."""
        body = self._body()
        modules = {} if body is None else body.frozen_modules()
        return {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}

    def shares_frozen_stages_with(self, other: Detector) -> bool:
        """Whether the frozen stages of both compute the same, so that one's output serves the other."""
        mine, theirs = self.frozen_state(), other.frozen_state()
        return bool(mine) and mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
