"""With no method installed, the Detectron2 backend is Detectron2's own detector: keys, losses and predictions."""

import pickle

import pytest
import torch
from tiny import HEIGHT, WIDTH, random_batch, random_images, tiny_config

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from incdet.backends.backbone import build_body
from incdet.backends.detectron2 import native
from incdet.backends.detectron2.config import zoo_file
from incdet.backends.detectron2.weights import IncdetCheckpointer, load_pretrained
from incdet.backends.names import torchvision_name
from incdet.config import add_incdet_config
from incdet.structures import Batch, Target

pytestmark = pytest.mark.detectron2

CLASSES = 3
SMALL = [
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 60,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 80, "MODEL.RPN.POST_NMS_TOPK_TEST", 30,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 32, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 24,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.01, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", False,
    "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96,
]  # fmt: skip
ZOO = {
    "fpn": ["COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
            "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [48], [64]]],
    "c4": ["PascalVOC-Detection/faster_rcnn_R_50_C4.yaml", "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64]]],
}  # fmt: skip


def config(neck: str, *overrides):
    cfg = get_cfg()
    add_incdet_config(cfg)
    file, *more = ZOO[neck]
    cfg.merge_from_file(zoo_file(file))
    cfg.merge_from_list([*SMALL, *more, *overrides])
    return cfg


def pair(neck: str, *overrides):
    """A stock detector and ours with the same weights and settings, both in training."""
    cfg = config(neck, *overrides)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = CLASSES
    torch.manual_seed(0)
    stock = build_model(cfg)
    for layer in (stock.proposal_generator.rpn_head.objectness_logits, stock.proposal_generator.rpn_head.anchor_deltas):
        torch.nn.init.normal_(layer.weight, std=0.1)  # the 0.01 of the library would leave all scores alike
    ours = build_model(native(cfg, CLASSES))
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.train(), ours.train()


def inputs(seed: int, count: int = 3, empty: bool = False):
    """A dataset mapper's output: BGR bytes, resized, with instances."""
    batch = random_batch(count, CLASSES, seed)
    items = []
    for number, (image, target) in enumerate(zip(batch.images, batch.targets, strict=True)):
        rows = slice(0, 0) if empty and number == 0 else slice(None)
        instances = Instances(
            (HEIGHT, WIDTH), gt_boxes=Boxes(target.boxes[rows].clone()), gt_classes=target.labels[rows].clone()
        )
        items.append({"image": (image * 255).byte(), "instances": instances, "height": 2 * HEIGHT, "width": 2 * WIDTH})
    return items


VARIANTS = {
    "fpn": ("fpn",),
    "c4": ("c4",),
    "fpn-agnostic-l1": ("fpn", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.RPN.SMOOTH_L1_BETA", 0.11),
    "c4-agnostic": ("c4", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.RPN.BOUNDARY_THRESH", 0),
    "fpn-giou": ("fpn", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "diou"),
    "fpn-weights": ("fpn", "MODEL.RPN.LOSS_WEIGHT", 0.5, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 3.0),
    "fpn-sigmoid": ("fpn", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
    "c4-three-ways": (
        "c4", "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.3, 0.5], "MODEL.ROI_HEADS.IOU_LABELS", [0, -1, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_losses_and_gradients_equal_the_stock_ones(variant):
    stock, ours = pair(*variant)
    for seed in range(3):
        found = []
        for model in (stock, ours):
            model.zero_grad()
            torch.manual_seed(seed)
            with EventStorage():
                losses = model(inputs(seed, empty=seed == 2))
            sum(losses.values()).backward()
            found.append(losses)
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        expected = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
        got = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
        assert expected.keys() == got.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=name)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_predictions_equal_the_stock_ones(neck):
    stock, ours = pair(neck)
    with torch.no_grad():
        expected, found = (model.eval()(inputs(4)) for model in (stock, ours))
    assert sum(len(item["instances"]) for item in expected) > 0
    for one, other in zip(found, expected, strict=True):
        one, other = one["instances"], other["instances"]
        assert one.image_size == other.image_size
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor)
        torch.testing.assert_close(one.scores, other.scores)
        assert one.pred_classes.tolist() == other.pred_classes.tolist()


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_the_loader_and_the_mapper_lead_to_the_same_losses(neck):
    """incdet's batches (RGB from 0 to 1, to be resized) and Detectron2's inputs of the same pictures."""
    _, ours = pair(neck)
    items = inputs(5)
    targets = [Target.from_boxes(i["instances"].gt_boxes.tensor, i["instances"].gt_classes) for i in items]
    batch = Batch([i["image"].flip(0) / 255 for i in items], targets)
    torch.manual_seed(0)
    expected = ours(items)
    torch.manual_seed(0)
    images = ours.image_pass(batch)
    found = ours.losses(images, ours.region_pass(images))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_an_image_is_resized_as_detectron2_resizes_it():
    """DefaultPredictor resizes with PIL, which rounds to whole grey levels."""
    cfg = config("fpn", "INPUT.MIN_SIZE_TEST", 48)
    predictor = DefaultPredictor(native(cfg, CLASSES))
    image = (random_images(1, seed=9)[0] * 255).byte()
    array = image.permute(1, 2, 0).flip(2).numpy()
    resized = predictor.aug.get_transform(array).apply_image(array)
    assert resized.shape[:2] == (48, 72)
    expected = predictor.model.preprocess_image([{"image": torch.from_numpy(resized.copy()).permute(2, 0, 1)}])
    found = predictor.model.image_pass(Batch([image / 255], None)).images
    assert found.image_sizes == expected.image_sizes
    torch.testing.assert_close(found.tensor, expected.tensor, rtol=0, atol=1.01)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_a_model_zoo_checkpoint_loads_with_nothing_unexpected(neck, tmp_path, capsys):
    stock, ours = pair(neck)
    state = {name: tensor.numpy() for name, tensor in stock.state_dict().items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    for tensor in ours.state_dict().values():
        tensor.zero_()
    incompatible = IncdetCheckpointer(ours)._load_model({"model": dict(stock.state_dict())})
    assert (incompatible.missing_keys, incompatible.unexpected_keys, incompatible.incorrect_shapes) == ([], [], [])
    for tensor in ours.state_dict().values():
        tensor.zero_()
    cfg = config(neck, "MODEL.WEIGHTS", str(path))
    load_pretrained(ours, native(cfg, CLASSES))
    assert capsys.readouterr().out == f"{path}: {len(state)} tensors loaded\n"
    assert all(torch.equal(tensor, stock.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_shared_resnet_50_with_its_stride_in_the_1x1_is_detectron2s():
    """The network of MSRA's weights: same tensors under other names, same outputs."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res4"]
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1
    torch.manual_seed(0)
    theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    for name, value in theirs.named_buffers():
        value.uniform_(0.5, 1.0) if "weight" in name or "var" in name else value.normal_(0.0, 0.1)
    shared = tiny_config("c4", "MODEL.BACKBONE.NAME", "resnet50", "MODEL.BACKBONE.WIDTH", 64)
    shared.merge_from_list(["MODEL.BACKBONE.NORM", "FrozenBN", "MODEL.BACKBONE.STRIDE_IN_1X1", True])
    ours, _, _ = build_body(shared, ("res2", "res4"))
    renamed = {torchvision_name(name): tensor for name, tensor in theirs.state_dict().items()}
    assert ours.state_dict().keys() == renamed.keys()
    ours.load_state_dict(renamed)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = theirs(images), ours.eval()(images)
    for level, features in expected.items():
        torch.testing.assert_close(found[level], features, rtol=1e-4, atol=1e-4 * float(features.abs().max()))
