"""Detectron2's two-stage detector behind incdet's interface, and behind its own.

``IncrementalRCNN`` is a ``GeneralizedRCNN``: Detectron2's trainers, predictor, checkpointer and evaluators take it as
one. It is also a ``Detector``, so incdet's engine and methods run on it. Both ways in lead through the same stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model, detector_postprocess
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from fvcore.common.config import CfgNode
from fvcore.nn import giou_loss
from torch import Tensor, nn
from torch.nn import functional as F

from incdet.backends.base import Detector, scale_of
from incdet.backends.detectron2 import backbone as _registers_shared_backbones  # noqa: F401
from incdet.backends.detectron2.config import native, refuse_elsewhere
from incdet.backends.detectron2.heads import IncrementalROIHeads, IncrementalRPN
from incdet.backends.detectron2.weights import load_pretrained
from incdet.errors import ConfigError
from incdet.losses.detection import BoxLoss, region_losses, rpn_losses, smooth_l1
from incdet.structures import IGNORED, Batch, Detections, ImageOutputs, RegionOutputs, Target

_IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


@dataclass(frozen=True)
class ResizedBatch(Batch):
    """A batch whose images Detectron2's dataset mapper has brought to their size."""


@dataclass(frozen=True)
class Sizes:
    """How an image is resized: to one of ``short``, or to between the first two, at most ``longest`` pixels long."""

    short: tuple[int, ...]
    longest: int
    ranged: bool = False

    def draw(self, height: int, width: int) -> tuple[int, int]:
        """The new (height, width), by Detectron2's rule; a size is drawn from torch's generator."""
        if self.ranged:
            short = int(torch.randint(self.short[0], self.short[1] + 1, (1,)))
        else:
            short = self.short[int(torch.randint(len(self.short), (1,)))] if len(self.short) > 1 else self.short[0]
        return ResizeShortestEdge.get_output_shape(height, width, short, self.longest) if short else (height, width)


@META_ARCH_REGISTRY.register()
class IncrementalRCNN(GeneralizedRCNN, Detector):
    """Detectron2's ``GeneralizedRCNN`` whose stages can be called one by one and whose head grows."""

    # Detectron2 ships no types.
    backbone: Any
    proposal_generator: Any
    roi_heads: Any
    preprocess_image: Any
    visualize_training: Any
    _postprocess: Any
    device: Any
    input_format: str
    vis_period: int
    # What the losses of a step are, where methods add to them: (batch) -> losses by name (``engine.learner.Learner``).
    learner: Callable[[Batch], dict[str, Tensor]] | None = None

    @configurable
    def __init__(
        self,
        *,
        train_sizes: Sizes,
        test_sizes: Sizes,
        class_agnostic: bool = False,
        freeze_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        """Takes ``GeneralizedRCNN``'s arguments beside its own.

        Args:
            train_sizes: of the images of a ``Batch`` in training; a mapper's are taken as they come.
            test_sizes: of the images that ``predict`` is given.
            class_agnostic: the predictor has one box per region for all classes.
            freeze_norm: every batch norm stays as it is.
            **kwargs: ``GeneralizedRCNN``'s.

        Raises:
            ConfigError: the RPN or the ROI heads are not incremental ones, or cannot grow.
        """
        super().__init__(**kwargs)
        self.sizes = {True: train_sizes, False: test_sizes}
        self.class_agnostic = class_agnostic
        for part, kind in ((self.proposal_generator, IncrementalRPN), (self.roi_heads, IncrementalROIHeads)):
            if not isinstance(part, kind):
                raise ConfigError(
                    f"MODEL.META_ARCHITECTURE IncrementalRCNN needs an {kind.__name__}, got {type(part).__name__}: set "
                    "MODEL.PROPOSAL_GENERATOR.NAME to IncrementalRPN and MODEL.ROI_HEADS.NAME to "
                    "IncrementalStandardROIHeads (FPN) or IncrementalRes5ROIHeads (C4)."
                )
        self.roi_heads.check()
        self.box_losses = (_box_loss(self.proposal_generator), _box_loss(self.roi_heads.box_predictor))
        self.freeze_norms(freeze_norm)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if "FREEZE_NORM" not in cfg.MODEL.BACKBONE:
            raise ConfigError("IncrementalRCNN needs incdet's keys: call incdet.config.add_incdet_config(cfg) first.")
        for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"):
            if cfg.MODEL[key]:
                raise ConfigError(f"MODEL.{key}: IncrementalRCNN detects boxes only; leave it out.")
        node = cfg.INPUT
        return {
            **super().from_config(cfg),
            "train_sizes": Sizes(
                tuple(node.MIN_SIZE_TRAIN), node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING == "range"
            ),
            "test_sizes": Sizes((node.MIN_SIZE_TEST,), node.MAX_SIZE_TEST),
            "class_agnostic": cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
            "freeze_norm": cfg.MODEL.BACKBONE.FREEZE_NORM,
        }

    def __setattr__(self, name: str, value: Any) -> None:
        """A learner holds this detector: as a sub-module of it, it would make the module tree endless."""
        if name == "learner":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def num_classes(self) -> int:
        return self.roi_heads.num_classes

    def expand_classes(self, count: int) -> None:
        self.roi_heads.grow(count, self.class_agnostic)

    def drop_classes(self, count: int) -> None:
        self.roi_heads.drop(count, self.class_agnostic)

    @property
    def classifier(self) -> nn.Linear:
        return self.roi_heads.box_predictor.cls_score

    @property
    def classifier_rows(self) -> list[int]:
        return [*range(self.num_classes + 1)]

    @property
    def box_head(self) -> nn.Module:
        return self.roi_heads.layers

    # ------------------------------------------------------------------ first stage

    def image_pass(self, batch: Batch) -> ImageOutputs:
        return self._pass(*self._prepare(batch))

    def _pass(self, images: ImageList, targets: list[Target] | None) -> ImageOutputs:
        """The first stage on normalised images, its anchors labelled where there are targets."""
        outputs = self._first_stage(images, self._frozen_pass(images.tensor))
        if targets is not None:
            outputs.targets = targets
            labelled = self.proposal_generator.sample(Boxes(outputs.anchors[0]), targets, images.image_sizes)
            outputs.anchor_labels, outputs.anchor_targets = labelled
        return outputs

    def image_pass_like(self, outputs: ImageOutputs, share_frozen: bool = False) -> ImageOutputs:
        images = outputs.images
        return self._first_stage(images, outputs.frozen_features if share_frozen else self._frozen_pass(images.tensor))

    def _frozen_pass(self, pixels: Tensor) -> Any:
        """What the stages of a shared backbone that do not train make of the pixels; None for a library's backbone."""
        body = self._body()
        return None if body is None else body.frozen_pass(pixels)

    def _first_stage(self, images: ImageList, frozen_features: Any) -> ImageOutputs:
        pixels, sizes = images.tensor, images.image_sizes
        features = self.backbone(pixels) if frozen_features is None else self.backbone(pixels, frozen_features)
        anchors, objectness, deltas = self.proposal_generator.outputs(features)
        return ImageOutputs(
            images=images,
            frozen_features=frozen_features,
            features=features,
            objectness=torch.cat(objectness, dim=1),
            anchor_deltas=torch.cat(deltas, dim=1),
            anchors=[Boxes.cat(anchors).tensor] * len(images),
            propose=lambda: self.proposal_generator.propose(anchors, objectness, deltas, sizes),
            image_sizes=sizes,
        )

    def _prepare(self, batch: Batch) -> tuple[ImageList, list[Target] | None]:
        """Resize, normalise and pad; targets follow."""
        images, targets = batch.images, batch.targets
        if not isinstance(batch, ResizedBatch):
            images = [self._resize(image) for image in images]
            if targets is not None:
                sizes = zip(targets, images, batch.images, strict=True)
                targets = [
                    replace(t, boxes=t.boxes * scale_of(t.boxes, i.shape[-2:], o.shape[-2:])) for t, i, o in sizes
                ]
        return self.preprocess_image([{"image": self._native(image)} for image in images]), targets

    def _native(self, image: Tensor) -> Tensor:
        """Pixels from 0 to 255 with the channels in ``INPUT.FORMAT``'s order."""
        image = image * 255
        return image if self.input_format == "RGB" else image.flip(0)

    def _resize(self, image: Tensor) -> Tensor:
        """The image in a size that the detector looks at now."""
        size = self.sizes[self.training].draw(*image.shape[-2:])
        if size == image.shape[-2:]:
            return image
        return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]

    # ------------------------------------------------------------------ second stage

    def sample_regions(self, proposals: list[Tensor], targets: list[Target]) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.roi_heads.sample(proposals, targets)

    def pool(self, outputs: ImageOutputs, boxes: list[Tensor]) -> Tensor:
        return self.roi_heads.pool(outputs.features, boxes)

    def box_features(self, pooled: Tensor) -> Tensor:
        return self.roi_heads.head(pooled)

    # ------------------------------------------------------------------ losses and prediction

    def losses(self, images: ImageOutputs, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        rpn = self.proposal_generator
        count = rpn.batch_size_per_image * len(images.image_sizes)
        losses = rpn_losses(images, self.box_losses[0], skip, count)
        return _weighted(losses, rpn.loss_weight) | self.region_losses(regions, skip)

    def region_losses(self, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]:
        predictor = self.roi_heads.box_predictor
        losses = region_losses(regions, self.box_losses[1], skip)
        if predictor.use_sigmoid_ce and regions.labels is not None and "loss_cls" not in skip:
            known = regions.labels != IGNORED
            losses["loss_cls"] = predictor.sigmoid_cross_entropy_loss(regions.logits[known], regions.labels[known])
        return _weighted(losses, predictor.loss_weight)

    def predictor(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.roi_heads.predict(features)

    def detections(
        self, outputs: ImageOutputs, logits: Tensor, deltas: Tensor, images: list[Tensor]
    ) -> list[Detections]:
        found = self.roi_heads.detect(logits, deltas, outputs.proposals, outputs.image_sizes)
        scaled = [detector_postprocess(f, *i.shape[-2:]) for f, i in zip(found, images, strict=True)]
        return [Detections(f.pred_boxes.tensor, f.scores, f.pred_classes) for f in scaled]

    # ------------------------------------------------------------------ Detectron2's own interface

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """``GeneralizedRCNN.forward``: in training losses by name, else detections; see there for the inputs."""
        if not self.training:
            return self.inference(batched_inputs)
        targets = [_target(item).to(self.device) for item in batched_inputs]
        if self.learner is not None:
            return self.learner(self._batch(batched_inputs, targets))
        images = self._pass(self.preprocess_image(batched_inputs), targets)
        regions = self.region_pass(images)
        if has_event_storage():
            self._log(batched_inputs, images, regions)
        return self.losses(images, regions)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """``GeneralizedRCNN.inference``, through the stages, the aligner and the read-out of ``predict``."""
        if detected_instances is not None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        outputs = self._pass(self.preprocess_image(batched_inputs), targets=None)
        found = self.roi_heads.detect(*self.read(outputs), outputs.proposals, outputs.image_sizes)
        return self._postprocess(found, batched_inputs, outputs.image_sizes) if do_postprocess else found

    def _batch(self, inputs: list[dict[str, Any]], targets: list[Target]) -> ResizedBatch:
        """A dataset mapper's output as methods see it."""
        images = [item["image"].to(self.device) / 255 for item in inputs]
        images = images if self.input_format == "RGB" else [image.flip(0) for image in images]
        return ResizedBatch(images, targets, [str(item.get("image_id", i)) for i, item in enumerate(inputs)])

    def _log(self, inputs: list[dict[str, Any]], images: ImageOutputs, regions: RegionOutputs) -> None:
        """What Detectron2's own RPN and heads write into the event storage."""
        storage, anchors, labels = get_event_storage(), images.anchor_labels, regions.labels
        if anchors is None or labels is None:
            return
        background = (labels == self.num_classes).sum().item()
        counts = {
            "rpn/num_pos_anchors": (anchors == 1).sum().item(),
            "rpn/num_neg_anchors": (anchors == 0).sum().item(),
            "roi_head/num_fg_samples": len(labels) - background,
            "roi_head/num_bg_samples": background,
        }
        for name, count in counts.items():
            storage.put_scalar(name, count / len(inputs))
        _log_classification_stats(regions.logits, labels)
        if self.vis_period > 0 and storage.iter % self.vis_period == 0:
            sized = zip(images.proposals, images.image_sizes, strict=True)
            self.visualize_training(inputs, [Instances(size, proposal_boxes=Boxes(boxes)) for boxes, size in sized])


def _target(item: dict[str, Any]) -> Target:
    """What a mapper says of an image's objects; ``TaskMapper`` says more than Detectron2's own."""
    instances = item["instances"]
    target = Target.from_boxes(instances.gt_boxes.tensor, instances.gt_classes)
    if instances.has("gt_weights"):
        more = {"weights": instances.gt_weights, "use_rpn": instances.gt_use_rpn, "use_roi": instances.gt_use_roi}
        target = replace(target, **more)
    if len(ignored := item.get("ignored_boxes", ())):
        target = target.with_ignored(ignored.tensor)
    return target


def _weighted(losses: dict[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: loss * weights.get(name, 1.0) for name, loss in losses.items()}


def _box_loss(part: Any) -> BoxLoss:
    """The box loss of an RPN or a predictor, as its configuration says.

    Raises:
        ConfigError: it is not one of Detectron2's.
    """
    kind, coder = part.box_reg_loss_type, part.box2box_transform
    if kind == "smooth_l1":
        return smooth_l1(part.smooth_l1_beta)
    if kind not in _IOU_LOSSES:
        raise ConfigError(
            f"BBOX_REG_LOSS_TYPE of {type(part).__name__}: expected smooth_l1, {', '.join(_IOU_LOSSES)}, got {kind!r}."
        )
    return _iou_loss(_IOU_LOSSES[kind], coder)


def _iou_loss(function: Callable[..., Tensor], coder: Box2BoxTransform) -> BoxLoss:
    def loss(deltas: Tensor, targets: Tensor, boxes: Tensor) -> Tensor:
        return function(coder.apply_deltas(deltas, boxes), coder.apply_deltas(targets, boxes), reduction="none")

    return loss


def build_detectron2(cfg: CfgNode, num_classes: int) -> IncrementalRCNN:
    """The detector that ``cfg`` describes, with ``MODEL.WEIGHTS`` loaded where it is set.

    Raises:
        ConfigError: a key asks for what incdet's engine does not do.
        CheckpointError: the weights cannot be read or nothing in them fits.
    """
    refuse_elsewhere(cfg)
    own = native(cfg, num_classes)
    detector = build_model(own)
    if own.MODEL.WEIGHTS:
        load_pretrained(detector, own)
    return detector
