"""A classifier is a detector whose only region is the whole image, and which knows no background.

Whatever is written for regions (distillation, replay, alignment, projection) therefore works on images too. Its
backbone has the names and the stages of a detector's, so that weights go from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from incdet.backends.backbone import Body, build_body, build_mlp
from incdet.backends.base import Detector
from incdet.errors import ConfigError, DataError
from incdet.heads import CosineLinear, grow_cosine, grow_linear, keep_rows
from incdet.losses.detection import region_losses, smooth_l1
from incdet.losses.multi_label import multi_label_loss
from incdet.structures import IGNORED, Batch, Detections, ImageOutputs, RegionOutputs, Target
from incdet.tasks import parse_split

HEADS = ("linear", "cosine")

# A context in which the classifier computes what one of its heads is to read.
Condition = Callable[[Detector], AbstractContextManager[None]]


class Trunk(nn.Module):
    """A body under the name that it has in a detector's backbone."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, frozen: tuple[Tensor, dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        return self.body(x, frozen)


class Classifier(Detector):
    """A backbone, the mean over its last map, and a head that grows.

    Args:
        body: returns one level.
        head: D features to K logits.
        heads: how many classes each head has; classes compete with those of their own head only. Several heads are one
            per task, and which task an image belongs to must be known.
        multi_head: new classes get a head of their own.
        multi_label: an image may carry several labels, so that every class has a sigmoid and competes with none.
        sizes: of the square images that the backbone sees in training, one of which is drawn per batch.
        test_size: the same at prediction.
        mean: of the pixels, from 0 to 1, in the order of ``input_format``.
        std: the same.
        input_format: RGB or BGR.
    """

    conditions: Sequence[Condition] | None = None  # one per head

    def __init__(
        self,
        body: Body,
        head: nn.Linear,
        heads: Sequence[int],
        multi_head: bool,
        multi_label: bool,
        sizes: Sequence[int],
        test_size: int,
        mean: Tensor,
        std: Tensor,
        input_format: str,
    ) -> None:
        super().__init__()
        self.backbone = Trunk(body)
        self.head = head
        self.heads = list(heads)
        self.multi_head, self.multi_label = multi_head, multi_label
        self.sizes, self.test_size, self.input_format = tuple(sizes), test_size, input_format
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    # ------------------------------------------------------------------ structure

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    @property
    def classifier(self) -> nn.Linear:
        return self.head

    @property
    def classifier_rows(self) -> list[int]:
        return [*range(self.num_classes)]

    @property
    def box_head(self) -> nn.Module:
        """The last stage of the backbone: between an image's features and the head there is a mean only."""
        return self.backbone.body[self.backbone.body.stages[-1][-1]]

    def expand_classes(self, count: int) -> None:
        head = self.head
        if isinstance(head, CosineLinear):
            self.head = grow_cosine(head, count)
        else:
            self.head = grow_linear(head, count, at=head.out_features, std=0.01)
        self.heads = [*self.heads, count] if self.multi_head else [self.num_classes]

    def drop_classes(self, count: int) -> None:
        self.head = keep_rows(self.head, [*range(count, self.num_classes)])
        self.heads = [self.num_classes]

    def start_from_background(self, count: int) -> None:
        """There is no background: nothing changes."""

    # ------------------------------------------------------------------ from pixels to logits

    def image_pass(self, batch: Batch) -> ImageOutputs:
        size = self._size()
        pixels = torch.stack([self._resized(image, size) for image in batch.images])
        outputs = self._look((pixels - self.mean) / self.std)
        outputs.targets = batch.targets
        return outputs

    def image_pass_like(self, outputs: ImageOutputs, share_frozen: bool = False) -> ImageOutputs:
        return self._look(outputs.images, outputs.frozen_features if share_frozen else None)

    def _look(self, pixels: Tensor, frozen: Any = None) -> ImageOutputs:
        count, height, width = len(pixels), *pixels.shape[-2:]
        frozen = self.backbone.body.frozen_pass(pixels) if frozen is None else frozen
        nothing = pixels.new_zeros(count, 0)
        whole = pixels.new_tensor([[0, 0, width, height]])
        return ImageOutputs(
            images=pixels,
            frozen_features=frozen,
            features=self.backbone(pixels, frozen),
            objectness=nothing,
            anchor_deltas=nothing.unsqueeze(2).expand(-1, -1, 4),
            anchors=[whole[:0]] * count,
            propose=lambda: [whole] * count,
            image_sizes=[(height, width)] * count,
        )

    def _size(self) -> int:
        """The side of a batch's images."""
        if not self.training:
            return self.test_size
        return self.sizes[int(torch.randint(len(self.sizes), ()))] if len(self.sizes) > 1 else self.sizes[0]

    def _resized(self, image: Tensor, size: int) -> Tensor:
        """The image as a square in the backbone's order of channels."""
        image = image if self.input_format == "RGB" else image.flip(0)
        if image.shape[-2:] == (size, size):
            return image
        return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]

    def pool(self, outputs: ImageOutputs, boxes: list[Tensor]) -> Tensor:
        """The map of a box's image, whatever the box."""
        (maps,) = outputs.features.values()
        counts = torch.tensor([len(box) for box in boxes], device=maps.device)
        return maps.repeat_interleave(counts, dim=0)

    def box_features(self, pooled: Tensor) -> Tensor:
        return pooled.mean(dim=(2, 3)) if pooled.ndim == 4 else pooled

    def predictor(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(features).float()
        return logits, logits.new_zeros(len(logits), 0, 4)

    def sample_regions(self, proposals: list[Tensor], targets: list[Target]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Every image once, with the label of its one object, or with what is known of every class.

        Raises:
            DataError: an image has several labels, and may not.
        """
        if self.multi_label:
            rows = [_label_set(target, self.num_classes) for target in targets]
            return proposals, {"label_sets": torch.stack(rows), "weights": proposals[0].new_ones(len(rows))}
        used = [target.select(target.use_roi) for target in targets]
        if any(len(target.labels.unique()) > 1 for target in used):
            raise DataError(
                "An image has several labels, and MODEL.CLASSIFIER.MULTI_LABEL is false: set it to true, or use a data "
                "set with one folder per class (folders:<folder>:<split>)."
            )
        device = proposals[0].device
        labels = [int(target.labels[0]) if len(target) else IGNORED for target in used]
        weights = [float(target.weights[0]) if len(target) else 1.0 for target in used]
        return proposals, {
            "labels": torch.tensor(labels, device=device),
            "delta_targets": torch.zeros(len(used), 4, device=device),
            "weights": torch.tensor(weights, device=device),
        }

    # ------------------------------------------------------------------ losses and prediction

    def losses(self, images: ImageOutputs, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        return self.region_losses(regions, skip)

    def region_losses(self, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        """Cross-entropy over the classes that compete with an image's own; with several labels, of each by itself."""
        if regions.label_sets is not None:
            if "loss_cls" in skip:
                return {}
            return {"loss_cls": multi_label_loss(regions.logits, regions.label_sets, regions.weights)}
        if regions.labels is None:
            raise ValueError("losses need images that came with targets")
        if self.multi_head:
            heads = torch.tensor(self.heads, device=regions.logits.device)
            head_of = torch.arange(len(heads), device=heads.device).repeat_interleave(heads)
            competing = head_of[regions.labels.clamp(min=0), None] == head_of
            regions = replace(regions, logits=regions.logits.masked_fill(~competing, -torch.inf))
        return region_losses(regions, smooth_l1(1.0), {*skip, "loss_box_reg"})

    def read(self, outputs: ImageOutputs) -> tuple[Tensor, Tensor]:
        """Logits as they are predicted from; where every head has a condition, its own are of a look under that one."""
        if self.conditions is None:
            return super().read(outputs)
        parts = []
        for head, condition in enumerate(self.conditions):
            with condition(self):
                logits, deltas = super().read(self.image_pass_like(outputs))
            parts.append(logits.split(self.heads, dim=1)[head])
        return torch.cat(parts, dim=1), deltas

    def detections(
        self, outputs: ImageOutputs, logits: Tensor, deltas: Tensor, images: list[Tensor]
    ) -> list[Detections]:
        """Every class with its probability among those that it competes with, the whole image as its box."""
        if self.multi_label:
            scores = logits.sigmoid()
        else:
            scores = torch.cat([head.softmax(dim=1) for head in logits.split(self.heads, dim=1)], dim=1)
        found = []
        for row, image in zip(scores, images, strict=True):
            height, width = image.shape[-2:]
            ranked, labels = row.sort(descending=True, stable=True)
            boxes = row.new_tensor([0, 0, width, height]).expand(len(row), 4)
            found.append(Detections(boxes, ranked, labels))
        return found


def build_classifier(cfg: CfgNode, num_classes: int) -> Classifier:
    """The classifier that ``cfg.MODEL`` describes, with random weights.

    Raises:
        ConfigError: a key has a value that is not known.
    """
    node = cfg.MODEL.CLASSIFIER
    if node.HEAD not in HEADS:
        raise ConfigError(f"MODEL.CLASSIFIER.HEAD: expected one of {', '.join(HEADS)}, got {node.HEAD!r}.")
    if node.MULTI_HEAD and node.MULTI_LABEL:
        raise ConfigError(
            "MODEL.CLASSIFIER.MULTI_HEAD and MULTI_LABEL are both true: heads keep the classes of different tasks from "
            "competing, and with a sigmoid for each no classes compete. Set MULTI_HEAD to false."
        )
    if cfg.MODEL.BACKBONE.NAME == "mlp":
        body, width = build_mlp(cfg), cfg.MODEL.BACKBONE.WIDTH
    else:
        body, channels, _ = build_body(cfg, ("res5",))
        (width,) = channels.values()
    head = CosineLinear(width, num_classes) if node.HEAD == "cosine" else nn.Linear(width, num_classes)
    classifier = Classifier(
        body,
        head,
        _heads(cfg.TASKS.PROXY or cfg.TASKS.SPLIT, num_classes) if node.MULTI_HEAD else [num_classes],
        node.MULTI_HEAD,
        node.MULTI_LABEL,
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TEST,
        torch.tensor(cfg.MODEL.PIXEL_MEAN) / 255,
        torch.tensor(cfg.MODEL.PIXEL_STD) / 255,
        cfg.INPUT.FORMAT,
    )
    classifier.freeze(cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.BACKBONE.FREEZE_NORM)
    return classifier


def _label_set(target: Target, num_classes: int) -> Tensor:
    """What is known of each class (K,): 1 present, 0 absent, IGNORED where it is not labelled or only uncertain."""
    labels = target.labels
    known = torch.full((num_classes,), IGNORED, device=labels.device)
    known[slice(None) if target.labelled is None else sorted(target.labelled)] = 0
    known[labels[~target.use_roi]] = IGNORED
    known[labels[target.use_roi]] = 1
    return known


def _heads(split: str, num_classes: int) -> list[int]:
    """The sizes of the tasks that taught so many classes; one size where the split has no such beginning."""
    sizes = list(parse_split(split))
    ends = list(accumulate(sizes))
    return sizes[: ends.index(num_classes) + 1] if num_classes in ends else [num_classes]
