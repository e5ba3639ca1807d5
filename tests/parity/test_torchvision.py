"""With no method installed, the torchvision backend is torchvision's own Faster R-CNN: keys, losses and predictions."""

import copy
import functools
import itertools

import pytest
import torch
from tiny import HEIGHT, WIDTH, random_batch, random_images, tiny_config, tiny_detector
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from incdet.backends import build_detector
from incdet.config import get_cfg
from incdet.structures import Batch, Target

CLASSES = 3
STOCK_NAMES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_box_reg": "loss_box_reg",
}
# The same settings under both names.
SETTINGS = [
    ("rpn_pre_nms_top_n_train", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100),
    ("rpn_post_nms_top_n_train", "MODEL.RPN.POST_NMS_TOPK_TRAIN", 60),
    ("rpn_pre_nms_top_n_test", "MODEL.RPN.PRE_NMS_TOPK_TEST", 80),
    ("rpn_post_nms_top_n_test", "MODEL.RPN.POST_NMS_TOPK_TEST", 30),
    ("rpn_nms_thresh", "MODEL.RPN.NMS_THRESH", 0.6),
    ("rpn_batch_size_per_image", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 64),
    ("rpn_positive_fraction", "MODEL.RPN.POSITIVE_FRACTION", 0.4),
    ("box_batch_size_per_image", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 24),
    ("box_positive_fraction", "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5),
    ("box_score_thresh", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2),
    ("box_nms_thresh", "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.4),
    ("box_detections_per_img", "TEST.DETECTIONS_PER_IMAGE", 20),
]
STOCK_SETTINGS = {"min_size": (64, 80), "max_size": 112} | {stock: value for stock, _, value in SETTINGS}
STANDARD_NETWORK = (
    "MODEL.BACKBONE.NORM", "FrozenBN", "MODEL.BACKBONE.WIDTH", 64, "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.FPN.OUT_CHANNELS", 256, "MODEL.ROI_BOX_HEAD.FC_DIM", 1024, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    "INPUT.MIN_SIZE_TRAIN", (64, 80), "INPUT.MAX_SIZE_TRAIN", 112,
    "INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TEST", 112,
)  # fmt: skip


class PlainBackbone(nn.Module):
    """The layers up to ``layer3``, as a user of torchvision would cut them."""

    def __init__(self, network: nn.Module, out_channels: int):
        super().__init__()
        self.body = IntermediateLayerGetter(network, {"layer3": "res4"})
        self.out_channels = out_channels

    def forward(self, x):
        return self.body(x)


class Res5(nn.Sequential):
    def forward(self, pooled):
        return super().forward(pooled).mean(dim=(2, 3))


def stock_fpn(**settings) -> FasterRCNN:
    anchors = AnchorGenerator(((8,), (16,), (32,), (48,), (64,)), ((0.5, 1.0, 2.0),) * 5)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    return FasterRCNN(backbone, num_classes=CLASSES + 1, rpn_anchor_generator=anchors, **settings)


def stock_c4(network=resnet18, channels: int = 256, **settings) -> FasterRCNN:
    network = network(norm_layer=FrozenBatchNorm2d)
    return FasterRCNN(
        PlainBackbone(network, channels),
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["res4"], 7, 2),
        box_head=Res5(*network.layer4),
        box_predictor=FastRCNNPredictor(2 * channels, CLASSES + 1),
        **settings,
    )


@functools.cache
def built(neck: str):
    torch.manual_seed(0)
    stock = {"fpn": stock_fpn, "c4": stock_c4}[neck](**STOCK_SETTINGS)
    for layer in (stock.rpn.head.cls_logits, stock.rpn.head.bbox_pred):
        nn.init.normal_(layer.weight, std=0.1)  # torchvision's 0.01 would leave all scores alike
    overrides = itertools.chain.from_iterable((ours, value) for _, ours, value in SETTINGS)
    ours = tiny_detector(tiny_config(neck, *STANDARD_NETWORK, *overrides), CLASSES)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


@pytest.fixture(params=["fpn", "c4"])
def pair(request):
    """A stock detector and ours with the same weights and settings."""
    stock, ours = built(request.param)
    for model in (stock, ours):
        model.train().zero_grad()
    return stock, ours


def stock_targets(batch: Batch) -> list[dict[str, torch.Tensor]]:
    return [{"boxes": target.boxes, "labels": target.labels + 1} for target in batch.targets]


def losses_of_both(stock, ours, batch: Batch, seed: int):
    torch.manual_seed(seed)
    expected = stock(batch.images, stock_targets(batch))
    torch.manual_seed(seed)
    images = ours.image_pass(batch)
    found = ours.losses(images, ours.region_pass(images))
    return {name: expected[stock_name] for name, stock_name in STOCK_NAMES.items()}, found


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_losses_equal_the_stock_ones(pair, seed):
    expected, found = losses_of_both(*pair, random_batch(3, CLASSES, seed), seed)
    assert found.keys() == expected.keys()
    assert all(value > 0 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_equal_the_stock_ones(pair):
    stock, ours = pair
    for losses in losses_of_both(stock, ours, random_batch(2, CLASSES, 5), 5):
        sum(losses.values()).backward()
    expected = {name: p.grad for name, p in stock.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4 * scale, msg=name)


def test_an_image_without_objects_trains_as_in_torchvision(pair):
    batch = random_batch(2, CLASSES, 1)
    nothing = Target.from_boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for targets in ([batch.targets[0], nothing], [nothing, nothing]):
        expected, found = losses_of_both(*pair, Batch(batch.images, targets), 1)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_predictions_equal_the_stock_ones_with_labels_from_zero(pair):
    stock, ours = pair
    images = [*random_images(2, seed=3), torch.rand(3, 50, 120), torch.rand(3, HEIGHT * 3, WIDTH)]
    with torch.no_grad():
        expected = stock.eval()(images)
    found = ours.predict(images)
    assert sum(len(one) for one in found) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.boxes, other["boxes"], rtol=0, atol=0)
        torch.testing.assert_close(one.scores, other["scores"], rtol=1e-6, atol=0)
        assert one.labels.tolist() == (other["labels"] - 1).tolist()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("norm", "buffers"), [("BN", True), ("FrozenBN", False)])
def test_the_default_model_has_the_names_of_fasterrcnn_resnet50_fpn(norm, buffers):
    with torch.device("meta"):
        stock = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NORM = norm
        ours = build_detector(cfg, 90)
    expected = {k: v for k, v in shapes(stock).items() if buffers or not k.endswith("num_batches_tracked")}
    assert shapes(ours) == expected


def test_a_c4_model_has_the_names_of_a_stock_one_with_a_res5_head():
    with torch.device("meta"):
        stock = stock_c4(resnet50, 1024)
        cfg = get_cfg()
        cfg.merge_from_list(["MODEL.NECK", "c4", "MODEL.ANCHOR_GENERATOR.SIZES", ((16, 32, 64),)])
        ours = build_detector(cfg, CLASSES)
    assert shapes(ours) == shapes(stock)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_one_box_for_all_classes_is_a_stock_head_whose_classes_agree(neck):
    """torchvision has no class-agnostic head; one whose rows are the same for every class must come to the same."""
    specific = tiny_detector(tiny_config(neck), CLASSES)
    agnostic = tiny_detector(tiny_config(neck, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True), CLASSES)
    box = agnostic.roi_heads.box_predictor.bbox_pred
    state = copy.deepcopy(agnostic.state_dict())
    state["roi_heads.box_predictor.bbox_pred.weight"] = box.weight.detach().repeat(CLASSES + 1, 1)
    state["roi_heads.box_predictor.bbox_pred.bias"] = box.bias.detach().repeat(CLASSES + 1)
    specific.load_state_dict(state)
    batch = random_batch(2, CLASSES)
    results = []
    for detector in (specific.train(), agnostic.train()):
        torch.manual_seed(0)
        images = detector.image_pass(batch)
        regions = detector.region_pass(images)
        results.append((detector.losses(images, regions), detector.predict(batch.images), regions.deltas.shape[1]))
    (losses, found, per_class), (agnostic_losses, agnostic_found, one) = results
    assert (per_class, one) == (CLASSES, 1)
    for name, value in losses.items():
        torch.testing.assert_close(agnostic_losses[name], value, rtol=1e-6, atol=1e-6)
    for detections, others in zip(found, agnostic_found, strict=True):
        torch.testing.assert_close(others.boxes, detections.boxes)
        torch.testing.assert_close(others.scores, detections.scores)
        assert others.labels.tolist() == detections.labels.tolist()
