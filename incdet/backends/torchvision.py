"""The embedded backend: torchvision's Faster R-CNN, its stages called one by one.

torchvision puts the background first and keeps it there in the weights, so that stock checkpoints load and the
``state_dict`` keys are the stock ones. Everything that leaves this file has the background last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from incdet.backends.backbone import C4Backbone, FpnBackbone, build_body
from incdet.backends.base import Detector
from incdet.backends.matching import lies_on, rows_of
from incdet.errors import ConfigError
from incdet.heads import grow_linear, keep_rows
from incdet.losses.detection import region_losses, rpn_losses, smooth_l1
from incdet.structures import IGNORED, Batch, Detections, ImageOutputs, RegionOutputs, Target


class Res5Head(nn.Sequential):
    """The C4 box head: the network's last stage on pooled features, then the spatial mean."""

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(pooled).mean(dim=(2, 3))


class AgnosticPredictor(nn.Module):
    """torchvision's predictor with one box for all classes."""

    def __init__(self, in_channels: int, num_logits: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_logits)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


class TorchvisionDetector(FasterRCNN, Detector):
    """Faster R-CNN with FPN or C4 features behind incdet's detector interface."""

    # torchvision ships no types.
    backbone: Any
    transform: Any
    rpn: Any
    roi_heads: Any

    def __init__(
        self,
        backbone: nn.Module,
        class_agnostic: bool = False,
        test_sizes: tuple[int, int] | None = None,
        input_format: str = "RGB",
        smooth_l1_betas: tuple[float, float] = (1 / 9, 1 / 9),
        **kwargs: Any,
    ) -> None:
        """Takes torchvision's own arguments by keyword.

        Args:
            backbone: as for ``FasterRCNN``, with a ``body`` (``backends.backbone``).
            class_agnostic: one box per region for all classes.
            test_sizes: short and longest side at prediction; None = torchvision's rule, the last of ``min_size``.
            input_format: RGB, or BGR: the order of the channels that the backbone sees.
            smooth_l1_betas: of the RPN and of the box head.
            **kwargs: ``FasterRCNN``'s.
        """
        super().__init__(backbone, **kwargs)
        self.class_agnostic = class_agnostic
        self.input_format = input_format
        self.box_losses = tuple(smooth_l1(beta) for beta in smooth_l1_betas)
        train_sizes = tuple(self.transform.min_size), self.transform.max_size
        self.sizes = {True: train_sizes, False: ((test_sizes[0],), test_sizes[1]) if test_sizes else train_sizes}

    # ------------------------------------------------------------------ structure

    @property
    def num_classes(self) -> int:
        return self.roi_heads.box_predictor.cls_score.out_features - 1

    def expand_classes(self, count: int) -> None:
        predictor = self.roi_heads.box_predictor
        score, box = predictor.cls_score, predictor.bbox_pred
        predictor.cls_score = grow_linear(score, count, at=score.out_features, std=0.01)
        if not self.class_agnostic:
            predictor.bbox_pred = grow_linear(box, 4 * count, at=box.out_features, std=0.001)

    def drop_classes(self, count: int) -> None:
        predictor, rows = self.roi_heads.box_predictor, [0, *range(count + 1, self.num_classes + 1)]
        predictor.cls_score = keep_rows(predictor.cls_score, rows)
        if not self.class_agnostic:
            predictor.bbox_pred = keep_rows(predictor.bbox_pred, [4 * row + i for row in rows for i in range(4)])

    @property
    def classifier(self) -> nn.Linear:
        return self.roi_heads.box_predictor.cls_score

    @property
    def classifier_rows(self) -> list[int]:
        return [*range(1, self.num_classes + 1), 0]

    @property
    def box_head(self) -> nn.Module:
        return self.roi_heads.box_head

    def train(self, mode: bool = True) -> TorchvisionDetector:
        super().train(mode)
        self.transform.min_size, self.transform.max_size = self.sizes[mode]
        return self

    # ------------------------------------------------------------------ first stage

    def image_pass(self, batch: Batch) -> ImageOutputs:
        images, targets = self._prepare(batch)
        outputs = self._first_stage(images, self.backbone.body.frozen_pass(images.tensors))
        if targets is not None:
            outputs.targets = targets
            outputs.anchor_labels, outputs.anchor_targets = self._sample_anchors(outputs.anchors, targets)
        return outputs

    def image_pass_like(self, outputs: ImageOutputs, share_frozen: bool = False) -> ImageOutputs:
        frozen = outputs.frozen_features if share_frozen else self.backbone.body.frozen_pass(outputs.images.tensors)
        return self._first_stage(outputs.images, frozen)

    def _first_stage(self, images: ImageList, frozen_features: Any) -> ImageOutputs:
        features = self.backbone(images.tensors, frozen_features)
        levels = list(features.values())
        raw_objectness, raw_deltas = self.rpn.head(levels)
        anchors = self.rpn.anchor_generator(images, levels)
        anchors_per_level = [o[0].numel() for o in raw_objectness]
        flat_objectness, flat_deltas = concat_box_prediction_layers(raw_objectness, raw_deltas)
        # Under autocast they come in 16 bits, and the box coder would round the anchors to the same.
        flat_objectness, flat_deltas = flat_objectness.float(), flat_deltas.float()

        def propose() -> list[Tensor]:
            boxes = self.rpn.box_coder.decode(flat_deltas.detach(), anchors).view(len(anchors), -1, 4)
            return self.rpn.filter_proposals(boxes, flat_objectness, images.image_sizes, anchors_per_level)[0]

        return ImageOutputs(
            images=images,
            frozen_features=frozen_features,
            features=features,
            objectness=flat_objectness.view(len(anchors), -1),
            anchor_deltas=flat_deltas.view(len(anchors), -1, 4),
            anchors=anchors,
            propose=propose,
            image_sizes=images.image_sizes,
        )

    def _prepare(self, batch: Batch) -> tuple[ImageList, list[Target] | None]:
        """Resize, normalise and pad; targets follow."""
        plain = None if batch.targets is None else [{"boxes": target.boxes} for target in batch.targets]
        pixels = batch.images if self.input_format == "RGB" else [image.flip(0) for image in batch.images]
        images, resized = self.transform(pixels, plain)
        if batch.targets is None:
            return images, None
        pairs = zip(batch.targets, resized, strict=True)
        return images, [replace(old, boxes=new["boxes"]) for old, new in pairs]

    def _sample_anchors(self, anchors: list[Tensor], targets: list[Target]) -> tuple[Tensor, Tensor]:
        used = [target.select(target.use_rpn) for target in targets]
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, [{"boxes": t.boxes} for t in used])
        for image_labels, image_anchors, target in zip(labels, anchors, targets, strict=True):
            image_labels[(image_labels == 0) & lies_on(image_anchors, target.boxes[~target.use_rpn])] = IGNORED
        positive, negative = self.rpn.fg_bg_sampler(labels)
        sampled = torch.stack(positive).bool() | torch.stack(negative).bool()
        deltas = self.rpn.box_coder.encode(matched, anchors)
        return torch.stack(labels).masked_fill(~sampled, IGNORED), torch.stack(deltas)

    # ------------------------------------------------------------------ second stage

    def pool(self, outputs: ImageOutputs, boxes: list[Tensor]) -> Tensor:
        return self.roi_heads.box_roi_pool(outputs.features, boxes, outputs.image_sizes)

    def box_features(self, pooled: Tensor) -> Tensor:
        return self.roi_heads.box_head(pooled)

    def predictor(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.roi_heads.box_predictor(features)
        logits, deltas = logits.float(), deltas.float()
        deltas = deltas.unflatten(1, (-1, 4))
        return _background_last(logits), deltas if self.class_agnostic else deltas[:, 1:]

    def sample_regions(self, proposals: list[Tensor], targets: list[Target]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Torchvision's ``select_training_samples`` with ignored boxes and per-box weights."""
        heads = self.roi_heads
        used = [target.select(target.use_roi) for target in targets]
        boxes = [target.boxes for target in used]
        proposals = heads.add_gt_proposals(proposals, boxes)
        matched, labels = heads.assign_targets_to_proposals(proposals, boxes, [t.labels + 1 for t in used])
        for image_labels, image_proposals, target in zip(labels, proposals, targets, strict=True):
            image_labels[(image_labels == 0) & lies_on(image_proposals, target.boxes[~target.use_roi])] = IGNORED
        picks = heads.subsample(labels)
        picked = [p[i] for p, i in zip(proposals, picks, strict=True)]
        native = torch.cat([label[i] for label, i in zip(labels, picks, strict=True)])
        rows = [m[i] for m, i in zip(matched, picks, strict=True)]
        matched_boxes = [rows_of(b, r) for b, r in zip(boxes, rows, strict=True)]
        weights = torch.cat([rows_of(t.weights, r, empty=1.0) for t, r in zip(used, rows, strict=True)])
        return picked, {
            "labels": torch.where(native == 0, self.num_classes, native - 1),
            "delta_targets": torch.cat(heads.box_coder.encode(matched_boxes, picked)),
            "weights": torch.where(native == 0, 1.0, weights),
        }

    # ------------------------------------------------------------------ losses and prediction

    def losses(self, images: ImageOutputs, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        return rpn_losses(images, self.box_losses[0], skip) | self.region_losses(regions, skip)

    def region_losses(self, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        return region_losses(regions, self.box_losses[1], skip)

    def detections(
        self, outputs: ImageOutputs, logits: Tensor, deltas: Tensor, images: list[Tensor]
    ) -> list[Detections]:
        boxes, scores, labels = self.roi_heads.postprocess_detections(
            _background_first(logits), self._native_deltas(deltas), outputs.proposals, outputs.image_sizes
        )
        found = [{"boxes": b} for b in boxes]
        found = self.transform.postprocess(found, outputs.image_sizes, [tuple(i.shape[-2:]) for i in images])
        return [Detections(f["boxes"], s, lab - 1) for f, s, lab in zip(found, scores, labels, strict=True)]

    def _native_deltas(self, deltas: Tensor) -> Tensor:
        """Deltas in torchvision's layout (R, (K + 1) * 4), one row of the background first."""
        deltas = deltas.expand(-1, self.num_classes, -1)
        return F.pad(deltas, (0, 0, 1, 0)).flatten(1)


def _background_last(logits: Tensor) -> Tensor:
    return torch.cat([logits[:, 1:], logits[:, :1]], dim=1)


def _background_first(logits: Tensor) -> Tensor:
    return torch.cat([logits[:, -1:], logits[:, :-1]], dim=1)


def build_torchvision(cfg: CfgNode, num_classes: int) -> TorchvisionDetector:
    """The detector that ``cfg.MODEL`` describes, with random weights.

    Raises:
        ConfigError: a key has a value that this backend cannot honour.
    """
    model = cfg.MODEL
    if model.NECK == "fpn":
        backbone, parts = _fpn_parts(cfg, num_classes)
    elif model.NECK == "c4":
        backbone, parts = _c4_parts(cfg, num_classes)
    else:
        raise ConfigError(f"MODEL.NECK: expected fpn or c4, got {model.NECK!r}.")
    low, high = model.RPN.IOU_THRESHOLDS
    (positive,) = model.ROI_HEADS.IOU_THRESHOLDS
    detector = TorchvisionDetector(
        backbone,
        class_agnostic=model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
        min_size=tuple(cfg.INPUT.MIN_SIZE_TRAIN),
        test_sizes=(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        max_size=cfg.INPUT.MAX_SIZE_TRAIN,
        input_format=cfg.INPUT.FORMAT,
        smooth_l1_betas=(model.RPN.SMOOTH_L1_BETA, model.ROI_BOX_HEAD.SMOOTH_L1_BETA),
        image_mean=[value / 255 for value in model.PIXEL_MEAN],
        image_std=[value / 255 for value in model.PIXEL_STD],
        rpn_pre_nms_top_n_train=model.RPN.PRE_NMS_TOPK_TRAIN,
        rpn_pre_nms_top_n_test=model.RPN.PRE_NMS_TOPK_TEST,
        rpn_post_nms_top_n_train=model.RPN.POST_NMS_TOPK_TRAIN,
        rpn_post_nms_top_n_test=model.RPN.POST_NMS_TOPK_TEST,
        rpn_nms_thresh=model.RPN.NMS_THRESH,
        rpn_bg_iou_thresh=low,
        rpn_fg_iou_thresh=high,
        rpn_batch_size_per_image=model.RPN.BATCH_SIZE_PER_IMAGE,
        rpn_positive_fraction=model.RPN.POSITIVE_FRACTION,
        box_fg_iou_thresh=positive,
        box_bg_iou_thresh=positive,
        box_batch_size_per_image=model.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        box_positive_fraction=model.ROI_HEADS.POSITIVE_FRACTION,
        box_score_thresh=model.ROI_HEADS.SCORE_THRESH_TEST,
        box_nms_thresh=model.ROI_HEADS.NMS_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        **parts,
    )
    detector.freeze(model.BACKBONE.FREEZE_AT, model.BACKBONE.FREEZE_NORM)
    return detector


def _anchors(cfg: CfgNode, levels: int) -> AnchorGenerator:
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    if len(sizes) != levels:
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR.SIZES: expected {levels} tuple(s) of sizes, one per feature level of the model, "
            f"got {len(sizes)}: {sizes}."
        )
    ratios = cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    if len(ratios) not in (1, levels):
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS: expected 1 or {levels} tuple(s) of ratios, got {len(ratios)}: "
            f"{ratios}."
        )
    ratios = tuple(ratios) * (levels if len(ratios) == 1 else 1)
    return AnchorGenerator(tuple(tuple(s) for s in sizes), tuple(tuple(r) for r in ratios))


def _predictor(cfg: CfgNode, width: int, num_classes: int) -> nn.Module:
    if cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        return AgnosticPredictor(width, num_classes + 1)
    return FastRCNNPredictor(width, num_classes + 1)


def _pooler(cfg: CfgNode, levels: Sequence[str]) -> MultiScaleRoIAlign:
    head = cfg.MODEL.ROI_BOX_HEAD
    return MultiScaleRoIAlign(list(levels), head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO)


def _fpn_parts(cfg: CfgNode, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    levels = tuple(cfg.MODEL.FPN.IN_FEATURES)
    body, channels, _ = build_body(cfg, levels)
    backbone = FpnBackbone(body, channels, cfg.MODEL.FPN.OUT_CHANNELS)
    head = cfg.MODEL.ROI_BOX_HEAD
    return backbone, {
        "rpn_anchor_generator": _anchors(cfg, len(levels) + 1),  # one more for the pyramid's pooled top
        "box_roi_pool": _pooler(cfg, levels),
        "box_head": TwoMLPHead(backbone.out_channels * head.POOLER_RESOLUTION**2, head.FC_DIM),
        "box_predictor": _predictor(cfg, head.FC_DIM, num_classes),
    }


def _c4_parts(cfg: CfgNode, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    body, channels, network = build_body(cfg, ("res4",))
    if not isinstance(network, ResNet):
        raise ConfigError(
            f"MODEL.NECK c4 needs a ResNet backbone, got MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r}."
        )
    width = network.fc.in_features
    return C4Backbone(body, channels), {
        "rpn_anchor_generator": _anchors(cfg, 1),
        "box_roi_pool": _pooler(cfg, ("res4",)),
        "box_head": Res5Head(*network.layer4),
        "box_predictor": _predictor(cfg, width, num_classes),
    }
