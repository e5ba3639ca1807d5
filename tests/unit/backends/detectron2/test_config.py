"""One tree for incdet's keys and Detectron2's, from either side."""

import re

import pytest
import torch
from tiny import random_images, tiny_config, tiny_detector

pytest.importorskip("detectron2")

from detectron2.config import CfgNode as Detectron2Node
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.modeling import GeneralizedRCNN, build_model

from incdet.backends import build_detector, load_detector
from incdet.backends.detectron2 import IncrementalRCNN, native
from incdet.backends.detectron2.config import ELSEWHERE
from incdet.backends.weights import save_model
from incdet.config import add_incdet_config, get_cfg, leaves
from incdet.errors import ConfigError

pytestmark = pytest.mark.detectron2

ZOO = "detectron2://PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"


@pytest.fixture
def write(tmp_path):
    def write_yaml(text: str):
        path = tmp_path / "a.yaml"
        path.write_text(text)
        return path

    return write_yaml


# ---------------------------------------------------------------------- Detectron2's tree, with incdet's keys


def test_incdets_keys_are_added_and_detectron2s_values_stay():
    plain, cfg = detectron2_cfg(), detectron2_cfg()
    add_incdet_config(cfg)
    after = dict(leaves(cfg))
    assert {key: after[key] for key, _ in leaves(plain)} == dict(leaves(plain))
    assert after.keys() >= dict(leaves(get_cfg())).keys()
    assert cfg.BACKEND == "detectron2"
    assert isinstance(cfg, Detectron2Node)
    assert isinstance(cfg.clone().MODEL.RPN, Detectron2Node)


def test_yaml_is_safe_and_errors_say_where(write, tmp_path):
    cfg = detectron2_cfg()
    add_incdet_config(cfg)
    with pytest.raises(ConfigError, match=r"a\.yaml is not plain YAML"):
        cfg.merge_from_file(write(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"))
    assert not (tmp_path / "made").exists()
    with pytest.raises(ConfigError, match=r"Unknown key MODEL\.ROI_HEADS\.NUM_CLASS, set in .*Did you mean"):
        cfg.merge_from_file(write("MODEL: {ROI_HEADS: {NUM_CLASS: 3}}\n"))


def test_a_stock_model_is_still_built_from_it():
    cfg = detectron2_cfg()
    add_incdet_config(cfg)
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4]
    )
    assert type(build_model(cfg)) is GeneralizedRCNN


# ---------------------------------------------------------------------- incdet's tree, with Detectron2's keys


def test_the_model_zoo_brings_detectron2s_defaults(write):
    cfg = get_cfg()
    cfg.merge_from_file(write(f"_BASE_: {ZOO}\nMODEL: {{WEIGHTS: ''}}\nMETHODS: [faster_ilod]\n"))
    assert cfg.BACKEND == "detectron2"
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD) == ("BGR", (1.0, 1.0, 1.0))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.MODEL.RPN.PRE_NMS_TOPK_TEST) == (18000, 100, 6000)
    assert (cfg.SEED, cfg.OUTPUT_DIR) == (0, "output")  # a run's own
    assert cfg.METHODS == ("faster_ilod",)


def test_a_file_that_the_zoo_does_not_have_is_named(write):
    with pytest.raises(ConfigError, match=r"model zoo has no configuration PascalVOC-Detection/nowhere\.yaml"):
        get_cfg().merge_from_file(write("_BASE_: detectron2://PascalVOC-Detection/nowhere.yaml\n"))


def test_any_key_of_detectron2_reaches_the_model():
    cfg = tiny_config("fpn", "BACKEND", "detectron2", "MODEL.RPN.BOUNDARY_THRESH", 0, "MODEL.ROI_BOX_HEAD.NUM_CONV", 1)
    detector = tiny_detector(cfg)
    assert detector.proposal_generator.anchor_boundary_thresh == 0
    assert detector.roi_heads.box_head.conv1.out_channels == 256


def test_a_key_that_torchvision_cannot_honour_is_refused_there():
    cfg = tiny_config("fpn", "BACKEND", "detectron2", "MODEL.RPN.BOUNDARY_THRESH", 0)
    cfg.merge_from_list(["BACKEND", "torchvision"])
    with pytest.raises(ConfigError, match=r"(?s)torchvision cannot honour.*MODEL\.RPN\.BOUNDARY_THRESH \(on the comm"):
        build_detector(cfg, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.AMP.ENABLED", True), ("TEST.EVAL_PERIOD", 10), ("DATALOADER.SAMPLER_TRAIN", "RandomSubset"),
        ("INPUT.CROP.ENABLED", True), ("SOLVER.WARMUP_METHOD", "constant"), ("DATASETS.PROPOSAL_FILES_TRAIN", ["a"]),
    ],
)  # fmt: skip
def test_a_key_that_the_engine_does_not_honour_is_refused_with_what_to_do(key, value):
    cfg = tiny_config("fpn", "BACKEND", "detectron2", key, value)
    with pytest.raises(ConfigError, match=rf"(?s)its own trainer does.*{key} = .*{re.escape(ELSEWHERE[key])}"):
        build_detector(cfg, 2)


def test_every_key_that_is_refused_exists():
    assert ELSEWHERE.keys() <= dict(leaves(detectron2_cfg())).keys()


@pytest.mark.parametrize("key", ["MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"])
def test_what_is_not_a_box_is_refused(key):
    with pytest.raises(ConfigError, match=rf"{key}: IncrementalRCNN detects boxes only"):
        tiny_detector(tiny_config("fpn", "BACKEND", "detectron2", key, True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"), r"needs an IncrementalROIHeads, got CascadeROIHeads"),
        (("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "huber"), r"BBOX_REG_LOSS_TYPE of FastRCNNOutputLayers.*'huber'"),
    ],
)
def test_heads_that_cannot_grow_and_unknown_losses_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny_detector(
            tiny_config("fpn", "BACKEND", "detectron2", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, *overrides)
        )


def test_the_model_needs_incdets_keys():
    cfg = detectron2_cfg()
    cfg.MODEL.META_ARCHITECTURE = "IncrementalRCNN"
    with pytest.raises(ConfigError, match=r"call incdet\.config\.add_incdet_config\(cfg\) first"):
        build_model(cfg)


# ---------------------------------------------------------------------- the model that comes of it


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_a_saved_model_is_read_back_with_the_heads_it_was_saved_with(neck, tmp_path):
    """The stored configuration states every key, so none counts as not set."""
    cfg = tiny_config(neck, "BACKEND", "detectron2")
    detector = tiny_detector(cfg, 3).eval()
    path = tmp_path / "model.safetensors"
    save_model(path, detector.state_dict(), {"classes": '["a", "b", "c"]', "config": cfg.dump()})
    loaded, classes, stored = load_detector(path, get_cfg())
    assert isinstance(loaded, IncrementalRCNN)
    assert classes == ("a", "b", "c")
    assert stored.BACKEND == "detectron2"
    images = random_images(1)
    (one,), (other,) = detector.predict(images), loaded.predict(images)
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)


def test_the_shared_backbone_is_built_under_its_name_by_detectron2(tmp_path):
    cfg = native(tiny_config("fpn", "BACKEND", "detectron2"), 2)
    model = build_model(cfg)
    assert type(model.backbone).__name__ == "SharedFpn"
    shapes = model.backbone.output_shape()
    outputs = model.backbone(torch.rand(1, 3, 64, 64))
    assert outputs.keys() == shapes.keys()
    assert all(64 // out.shape[-1] == shapes[name].stride for name, out in outputs.items())
    assert all(out.shape[1] == shapes[name].channels for name, out in outputs.items())


def test_the_methods_losses_take_the_place_of_the_models_own():
    detector = tiny_detector(tiny_config("fpn", "BACKEND", "detectron2")).train()
    seen = []

    def learner(batch):
        seen.append(batch)
        return {"loss_mine": torch.zeros(())}

    detector.learner = learner
    item = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "instances": _nothing(8)}
    assert detector([item]).keys() == {"loss_mine"}
    assert len(seen[0]) == 1
    assert detector.eval()([item])[0]["instances"].image_size == (8, 8)


def _nothing(size: int):
    from detectron2.structures import Boxes, Instances

    return Instances((size, size), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
