"""A backbone goes from classifiers to detectors of both backends and back, with every bit, and says what came along."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import random_images, tiny_config, tiny_detector

import incdet
from incdet.backends.base import Detector
from incdet.backends.weights import save_model
from incdet.config import get_cfg
from incdet.config.node import CfgNode
from incdet.errors import CheckpointError
from incdet.structures import Batch

DETECTRON2 = pytest.mark.detectron2
BACKENDS = [pytest.param("torchvision"), pytest.param("detectron2", marks=DETECTRON2)]
CLASSIFIER = ("TASK", "classification", "TASKS.SPLIT", "2+2", "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64)
MOBILENET = ("MODEL.BACKBONE.NAME", "mobilenet_v2", "MODEL.BACKBONE.WIDTH", 64)
RESNET50 = ("MODEL.BACKBONE.NAME", "resnet50")


def build(neck: str, *overrides, weights: Path | str = "", seed: int) -> tuple[Detector, CfgNode]:
    cfg = tiny_config(neck, *overrides, "MODEL.WEIGHTS", str(weights))
    return tiny_detector(cfg, seed=seed), cfg


def disturb(model: Detector) -> Detector:
    """As after some training: batch norms have seen images, parameters have moved."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim == 1:
            tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator))
        else:
            tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))
    return model


def disturb_head(model: Detector) -> Detector:
    """As after some training on a backbone that was not touched by it."""
    for name, tensor in model.state_dict().items():
        if name.endswith("bias") and not name.startswith(("backbone.body", "roi_heads.box_head", "roi_heads.res5")):
            tensor.add_(0.1)
    return model


def keep(model: Detector, cfg: CfgNode, run: Path) -> Path:
    """A run's folder with the model in it, as the engine writes it."""
    bare = cfg.clone()
    bare.MODEL.WEIGHTS = ""
    metadata = {"incdet": incdet.__version__, "classes": json.dumps(["a", "b"]), "config": bare.dump()}
    save_model(run / "task_1" / "model.safetensors", model.state_dict(), metadata)
    return run


def body_of(model: Detector, neck: str = "fpn") -> dict[str, torch.Tensor]:
    """The whole network; the box head of a C4 detector under the name that it has in a body."""
    state = model.state_dict()
    if neck == "c4":
        homes = r"roi_heads\.(box_head|res5)\."
        state = {re.sub(homes, "backbone.body.layer4.", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name.startswith("backbone.body.")}


def res4(model: Detector) -> torch.Tensor:
    """What the stages that every model here has make of an image."""
    with torch.no_grad(), model.evaluating():
        return model.backbone.body.run(random_images(1)[0][None], 0, 4)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("neck", "network"),
    [("fpn", ()), ("fpn", MOBILENET), ("c4", ())],
    ids=["resnet18-fpn", "mobilenet_v2-fpn", "resnet18-c4"],
)
def test_there_and_back(neck, network, backend, tmp_path, capsys):
    first = disturb(build("fpn", *CLASSIFIER, *network, seed=0)[0])
    run = keep(first, tiny_config("fpn", *CLASSIFIER, *network), tmp_path / "classifier")
    detector, cfg = build(neck, *network, "BACKEND", backend, weights=run, seed=1)
    expected, found = body_of(first), body_of(detector, neck)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert torch.equal(res4(detector), res4(first))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run}: {len(expected)} tensors loaded\n")
    assert "2 of the file not in the model: head (2)" in printed
    file = keep(disturb_head(detector), cfg, tmp_path / "detector") / "task_1" / "model.safetensors"
    last, _ = build("fpn", *CLASSIFIER, *network, weights=file, seed=2)
    assert all(torch.equal(body_of(last)[name], tensor) for name, tensor in expected.items())
    images = Batch(random_images(2), None)
    outputs = [model.eval().image_pass(images).features["res5"] for model in (first, last)]
    assert torch.equal(*outputs)


def test_a_shallow_detector_leaves_the_rest_of_a_classifier_as_it_was(tmp_path, capsys):
    keys = ("MODEL.FPN.IN_FEATURES", ("res3", "res4"), "MODEL.ANCHOR_GENERATOR.SIZES", ((16,), (32,), (64,)))
    detector, cfg = build("fpn", *keys, seed=0)
    untouched = body_of(build("fpn", *CLASSIFIER, seed=1)[0])
    classifier, _ = build("fpn", *CLASSIFIER, weights=keep(detector, cfg, tmp_path), seed=1)
    taken = body_of(detector)
    assert not any("layer4" in name for name in taken)
    for name, tensor in body_of(classifier).items():
        assert torch.equal(tensor, taken.get(name, untouched[name]))
    printed = capsys.readouterr().out
    assert "of the model not in the file: backbone.body.layer4 (25), head (2)" in printed
    assert "of the file not in the model: backbone.fpn (8), roi_heads.box_head (4)" in printed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.BACKBONE.WIDTH", 16), "MODEL.BACKBONE.WIDTH is 8 in the file and 16 here"),
        (MOBILENET, r"MODEL.BACKBONE.NAME is resnet18 in the file and mobilenet_v2 here; MODEL.BACKBONE.WIDTH is 8"),
        (("MODEL.BACKBONE.NORM", "none"), "MODEL.BACKBONE.NORM is none is False in the file and True here"),
    ],
    ids=["width", "name", "norm"],
)
def test_another_backbone_is_refused_by_its_keys(overrides, message, backend, tmp_path):
    classifier, cfg = build("fpn", *CLASSIFIER, seed=0)
    run = keep(classifier, cfg, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        build("fpn", *overrides, "BACKEND", backend, weights=run, seed=1)


def test_a_resnet_50_that_steps_elsewhere_is_refused(tmp_path):
    classifier, cfg = build("fpn", *CLASSIFIER, *RESNET50, seed=0)
    run = keep(classifier, cfg, tmp_path)
    with pytest.raises(CheckpointError, match="STRIDE_IN_1X1 is False in the file and True here"):
        build("fpn", *RESNET50, "MODEL.BACKBONE.STRIDE_IN_1X1", True, weights=run, seed=1)


def test_a_file_with_nothing_of_a_backbone_is_refused(tmp_path):
    classifier, _ = build("fpn", *CLASSIFIER, seed=0)
    head = {name: tensor for name, tensor in classifier.state_dict().items() if name.startswith("head.")}
    save_model(tmp_path / "head.safetensors", head, {})
    with pytest.raises(CheckpointError, match=r"(?s)another network.*2 tensors loaded.*100 of the model not in"):
        build("fpn", *CLASSIFIER, weights=tmp_path / "head.safetensors", seed=1)


@pytest.mark.parametrize("network", [(), MOBILENET], ids=["resnet18", "mobilenet_v2"])
def test_other_pixels_give_the_same_features(network, tmp_path, capsys):
    classifier, cfg = build("fpn", *CLASSIFIER, *network, seed=0)
    run = keep(classifier, cfg, tmp_path)
    bgr = ("INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", (103.53, 116.28, 123.675), "MODEL.PIXEL_STD", (1.0, 1.0, 1.0))
    other, _ = build("fpn", *CLASSIFIER, *network, *bgr, weights=run, seed=1)
    images = Batch(random_images(1), None)
    found, expected = (model.eval().image_pass(images).features["res5"] for model in (other, classifier))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert "PIXEL_MEAN" not in capsys.readouterr().out
    build("fpn", *CLASSIFIER, *network, "MODEL.PIXEL_MEAN", (127.5, 127.5, 127.5), weights=run, seed=1)
    assert (
        "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] (RGB), here it is [127.5, 127.5, 127.5]" in capsys.readouterr().out
    )


@pytest.mark.detectron2
@pytest.mark.parametrize("neck", ["FPN", "C4"])
def test_detectron2s_own_resnet_takes_a_classifiers_and_gives_it_back(neck, tmp_path):
    resnet = (*CLASSIFIER, *RESNET50, "MODEL.BACKBONE.NORM", "FrozenBN")
    classifier, cfg = build("fpn", *resnet, seed=0)
    run = keep(disturb(classifier), cfg, tmp_path / "classifier")
    zoo = get_cfg()
    (tmp_path / "zoo.yaml").write_text(
        f"_BASE_: detectron2://PascalVOC-Detection/faster_rcnn_R_50_{neck}.yaml\nBACKEND: detectron2\n"
    )
    zoo.merge_from_file(tmp_path / "zoo.yaml")
    widths = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 8}
    zoo.merge_from_list([item for key, value in widths.items() for item in (f"MODEL.RESNETS.{key}", value)])
    zoo.merge_from_list(["MODEL.WEIGHTS", str(run)])
    with pytest.raises(CheckpointError, match="STRIDE_IN_1X1 is False in the file and True here"):
        tiny_detector(zoo)
    zoo.merge_from_list(["MODEL.RESNETS.STRIDE_IN_1X1", False])
    detector = tiny_detector(zoo)
    zoo.MODEL.WEIGHTS = ""
    again, _ = build("fpn", *resnet, weights=keep(detector, zoo, tmp_path / "detector"), seed=2)
    images = Batch(random_images(1), None)
    found, expected = (model.eval().image_pass(images).features["res5"] for model in (again, classifier))
    # The first convolution was rewritten for other pixels and back: rounding, which grows with what the layers add up.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
