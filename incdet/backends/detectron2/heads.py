"""Detectron2's RPN and ROI heads, their stages callable one by one, with boxes that a stage ignores.

They are registered beside the library's own (``IncrementalRPN``, ``IncrementalStandardROIHeads``,
``IncrementalRes5ROIHeads``), have the same parameters under the same names, and sample the same anchors and regions
from the same random numbers where every box is used by both stages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from incdet.backends.backbone import NETWORKS, build_network
from incdet.backends.matching import lies_on, rows_of
from incdet.errors import ConfigError, DivergenceError
from incdet.heads import grow_linear, keep_rows
from incdet.structures import IGNORED, Target


@PROPOSAL_GENERATOR_REGISTRY.register()
class IncrementalRPN(RPN):
    """Detectron2's RPN in three steps: predict, sample, propose."""

    def outputs(self, features: dict[str, Tensor]) -> tuple[list[Boxes], list[Tensor], list[Tensor]]:
        """Per level: the anchors (A_l, 4), their objectness (N, A_l) and their deltas (N, A_l, 4)."""
        levels = [features[name] for name in self.in_features]
        objectness, deltas = self.rpn_head(levels)
        flat_objectness = [level.permute(0, 2, 3, 1).flatten(1).float() for level in objectness]
        flat_deltas = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).float() for level in deltas]
        return self.anchor_generator(levels), flat_objectness, flat_deltas

    @torch.no_grad()
    def sample(
        self, anchors: Boxes, targets: Sequence[Target], image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Anchor labels (N, A) and regression targets (N, A, 4), as ``ImageOutputs`` has them."""
        labels, deltas = [], []
        for target, size in zip(targets, image_sizes, strict=True):
            boxes = Boxes(target.boxes[target.use_rpn])
            matched, label = self.anchor_matcher(pairwise_iou(boxes, anchors))
            if self.anchor_boundary_thresh >= 0:
                label[~anchors.inside_box(size, self.anchor_boundary_thresh)] = IGNORED
            label[(label == 0) & lies_on(anchors.tensor, target.boxes[~target.use_rpn])] = IGNORED
            labels.append(self._subsample_labels(label))
            found = boxes.tensor[matched] if len(boxes) else anchors.tensor  # without a box no anchor is positive
            deltas.append(self.box2box_transform.get_deltas(anchors.tensor, found))
        return torch.stack(labels).float(), torch.stack(deltas)

    def propose(
        self,
        anchors: list[Boxes],
        objectness: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """The boxes that the second stage looks at, per image (r, 4), best first.

        Raises:
            DivergenceError: in training, what the RPN predicts is not finite.
        """
        try:
            found = self.predict_proposals(anchors, objectness, [d.detach() for d in deltas], image_sizes)
        except FloatingPointError as error:
            raise DivergenceError(
                f"{error} Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED, and "
                "begin in another OUTPUT_DIR."
            ) from error
        return [instances.proposal_boxes.tensor for instances in found]


class IncrementalROIHeads(nn.Module, ABC):
    """What the incremental ROI heads share: sampling, detections and a predictor that grows."""

    # Of Detectron2's heads, which have no types.
    box_predictor: Any
    box_pooler: Any
    box_in_features: list[str]
    box_head: Any
    pooler: Any
    in_features: list[str]
    res5: Any
    num_classes: int
    batch_size_per_image: int
    positive_fraction: float
    proposal_append_gt: bool
    proposal_matcher: Any

    @property
    @abstractmethod
    def layers(self) -> nn.Module:
        """What makes region features of pooled ones."""

    @abstractmethod
    def pool(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """ROI pooling: (R, C, s, s) of all boxes of all images."""

    @abstractmethod
    def head(self, pooled: Tensor) -> Tensor:
        """Region features (R, D) of pooled ones."""

    def check(self) -> None:
        """Refuse what cannot grow.

        Raises:
            ConfigError: the predictor is not a plain one.
        """
        predictor = self.box_predictor
        if not isinstance(predictor, FastRCNNOutputLayers):
            raise ConfigError(
                f"MODEL.ROI_HEADS.NAME: {type(self).__name__} has {type(predictor).__name__} as its predictor; new "
                "classes can only be added to one FastRCNNOutputLayers."
            )
        if predictor.use_fed_loss:
            raise ConfigError("MODEL.ROI_BOX_HEAD.USE_FED_LOSS: its class weights do not grow; leave it out.")

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1), background last, and deltas (R, K, 4) or (R, 1, 4)."""
        logits, deltas = self.box_predictor(features)
        return logits.float(), deltas.float().unflatten(1, (-1, 4))

    def grow(self, count: int, class_agnostic: bool) -> None:
        """Add ``count`` classes to the predictor, before the background."""
        predictor = self.box_predictor
        predictor.cls_score = grow_linear(predictor.cls_score, count, at=self.num_classes, std=0.01)
        if not class_agnostic:
            box = predictor.bbox_pred
            predictor.bbox_pred = grow_linear(box, 4 * count, at=box.out_features, std=0.001)
        self.num_classes += count
        predictor.num_classes = self.num_classes

    def drop(self, count: int, class_agnostic: bool) -> None:
        """Take the first ``count`` classes out of the predictor."""
        predictor = self.box_predictor
        predictor.cls_score = keep_rows(predictor.cls_score, [*range(count, self.num_classes + 1)])
        if not class_agnostic:
            box = predictor.bbox_pred
            predictor.bbox_pred = keep_rows(box, [*range(4 * count, box.out_features)])
        self.num_classes -= count
        predictor.num_classes = self.num_classes

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], targets: list[Target]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The regions to train on, per image, and what ``RegionOutputs`` says of them."""
        boxes, parts = [], []
        for found, target in zip(proposals, targets, strict=True):
            used = target.select(target.use_roi)
            if self.proposal_append_gt:
                found = torch.cat([found, used.boxes])
            matched, quality = self.proposal_matcher(pairwise_iou(Boxes(used.boxes), Boxes(found)))
            labels = rows_of(used.labels, matched, empty=self.num_classes).clone()
            labels[quality == 0] = self.num_classes
            labels[quality == IGNORED] = IGNORED
            background = labels == self.num_classes
            labels[background & lies_on(found, target.boxes[~target.use_roi])] = IGNORED
            picks = torch.cat(
                subsample_labels(labels, self.batch_size_per_image, self.positive_fraction, self.num_classes)
            )
            found, labels, matched = found[picks], labels[picks], matched[picks]
            gold = used.boxes[matched] if len(used) else found  # without an object every region is background
            weights = rows_of(used.weights, matched, empty=1.0)
            boxes.append(found)
            parts.append(
                {
                    "labels": labels,
                    "delta_targets": self.box_predictor.box2box_transform.get_deltas(found, gold),
                    "weights": torch.where(labels == self.num_classes, 1.0, weights),
                }
            )
        return boxes, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def detect(
        self, logits: Tensor, deltas: Tensor, proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Detectron2's detections, in the pixels of the resized images."""
        instances = [
            Instances(size, proposal_boxes=Boxes(boxes)) for size, boxes in zip(image_sizes, proposals, strict=True)
        ]
        return self.box_predictor.inference((logits, deltas.flatten(1)), instances)[0]


@ROI_HEADS_REGISTRY.register()
class IncrementalStandardROIHeads(IncrementalROIHeads, StandardROIHeads):
    """Detectron2's heads for FPN features, in steps."""

    @property
    def layers(self) -> nn.Module:
        return self.box_head

    def pool(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        return self.box_pooler([features[name] for name in self.box_in_features], [Boxes(b) for b in boxes])

    def head(self, pooled: Tensor) -> Tensor:
        return self.box_head(pooled).flatten(1)


@ROI_HEADS_REGISTRY.register()
class IncrementalRes5ROIHeads(IncrementalROIHeads, Res5ROIHeads):
    """Detectron2's heads for C4 features, in steps; ``res5`` is the shared network's last stage where it is shared."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        if cfg.MODEL.BACKBONE.NAME not in NETWORKS:
            return super()._build_res5_block(cfg)
        network: Any = build_network(cfg)
        if not hasattr(network, "layer4"):
            raise ConfigError(
                f"MODEL.NECK c4 needs a ResNet backbone, got MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r}."
            )
        return network.layer4, network.fc.in_features

    def pool(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        return self.pooler([features[name] for name in self.in_features], [Boxes(b) for b in boxes])

    @property
    def layers(self) -> nn.Module:
        return self.res5

    def head(self, pooled: Tensor) -> Tensor:
        return self.res5(pooled).mean(dim=(2, 3))
