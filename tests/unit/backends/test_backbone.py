"""Backbones cut into stages compute what the whole network computes, and frozen stages stay as they are."""

import copy

import pytest
import torch
from tiny import tiny_config
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet50
from torchvision.ops import FrozenBatchNorm2d

from incdet.backends.backbone import LEVELS, build_body, build_mlp, build_network
from incdet.errors import ConfigError

STRIDES = {"resnet18": (4, 4, 8, 16, 32), "resnet50": (4, 4, 8, 16, 32), "mobilenet_v2": (2, 4, 8, 16, 32)}


def config(name: str = "resnet18", **backbone):
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.update({"NAME": name, "WIDTH": 64, **backbone})
    return cfg


@pytest.mark.parametrize("name", STRIDES)
def test_each_stage_ends_at_its_stride_and_says_its_channels(name):
    with torch.device("meta"):
        body, channels, _ = build_body(config(name), LEVELS)
        outputs = body.eval()(torch.zeros(1, 3, 64, 96))
    assert tuple(outputs) == LEVELS
    for (level, output), stride in zip(outputs.items(), STRIDES[name], strict=True):
        assert output.shape == (1, channels[level], 64 // stride, 96 // stride)


@pytest.mark.parametrize(
    ("name", "stock"), [("resnet18", resnet18), ("resnet50", resnet50), ("mobilenet_v2", mobilenet_v2)]
)
def test_the_standard_width_is_torchvisions_own_network(name, stock):
    with torch.device("meta"):
        ours, theirs = build_network(config(name)), stock()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_stages_together_are_the_whole_network(name):
    torch.manual_seed(0)
    body, _, network = build_body(config(name), ("res5",))
    body.eval(), network.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = body(x)["res5"]
        if name == "mobilenet_v2":
            expected = network.features(x)
        else:
            stem = network.maxpool(network.relu(network.bn1(network.conv1(x))))
            expected = network.layer4(network.layer3(network.layer2(network.layer1(stem))))
    assert torch.equal(found, expected)


def test_the_body_ends_at_the_deepest_level_asked_for():
    body, channels, network = build_body(config(), ("res3", "res4"))
    assert set(body) == {"conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"}
    assert channels == {"res3": 128, "res4": 256}
    assert network.layer4[0].conv1.in_channels == 256


def test_a_narrow_resnet_has_channels_in_proportion():
    _, channels, network = build_body(config(WIDTH=8), LEVELS)
    assert channels == {"stem": 8, "res2": 8, "res3": 16, "res4": 32, "res5": 64}
    assert network.fc.in_features == 64


def test_building_leaves_norm_statistics_untouched():
    body, _, _ = build_body(config(), ("res5",))
    assert body.training
    assert body["bn1"].num_batches_tracked == 0
    assert not body["bn1"].running_mean.any()


@pytest.mark.parametrize(("norm", "kind"), [("BN", nn.BatchNorm2d), ("FrozenBN", FrozenBatchNorm2d)])
def test_norms_go_by_name(norm, kind):
    assert type(build_network(config(NORM=norm)).bn1) is kind


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_without_norms_every_convolution_has_a_bias(name):
    network = build_network(config(name, NORM="none"))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(convolution.bias is not None and not convolution.bias.any() for convolution in convolutions)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("stages", [0, 1, 2, 5, 9])
def test_freezing_closes_the_first_stages_and_only_them(stages):
    body, _, _ = build_body(config(WIDTH=8), ("res5",))
    body.freeze(3)
    body.freeze(stages)
    children = [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    closed = {name.split(".")[0] for name, p in body.named_parameters() if not p.requires_grad}
    assert closed == set().union(*children[:stages])
    assert {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}.isdisjoint(closed)


def test_frozen_outputs_can_be_handed_to_a_copy():
    torch.manual_seed(0)
    body, _, _ = build_body(config(WIDTH=8), ("res2", "res5"))
    body.freeze(2)
    body.eval()
    twin = copy.deepcopy(body)
    x = torch.randn(2, 3, 64, 64)
    shared = body.frozen_pass(x)
    assert not shared[0].requires_grad
    expected = twin(x)
    for module in twin.frozen_modules().values():
        for parameter in module.parameters():
            nn.init.zeros_(parameter)  # proves that the shared outputs were used
    found = twin(x, shared)
    assert found["res5"].requires_grad
    assert all(torch.equal(found[level], expected[level]) for level in ("res2", "res5"))


def test_wires_say_what_each_layer_reads_and_makes():
    resnet, bottlenecks, mobilenet = (
        [tuple(wire) for wire in build_body(config(name), ("res5",))[0].wires()] for name in STRIDES
    )
    assert resnet[:5] == [
        ("conv1", None, "bn1"),
        ("layer1.0.conv1", "bn1", "layer1.0.bn1"),
        ("layer1.0.conv2", "layer1.0.bn1", "layer1.0"),
        ("layer1.1.conv1", "layer1.0", "layer1.1.bn1"),
        ("layer1.1.conv2", "layer1.1.bn1", "layer1.1"),
    ]
    assert bottlenecks[-10:-6] == [  # of the block before the last two, whose shortcut is a layer
        ("layer4.0.conv1", "layer3.5", "layer4.0.bn1"),
        ("layer4.0.conv2", "layer4.0.bn1", "layer4.0.bn2"),
        ("layer4.0.conv3", "layer4.0.bn2", "layer4.0"),
        ("layer4.0.downsample.0", "layer3.5", "layer4.0"),
    ]
    assert mobilenet[:4] == [
        ("0.0", None, "0"), ("1.conv.0.0", "0", "1.conv.0"), ("1.conv.1", "1.conv.0", "1"),
        ("2.conv.0.0", "1", "2.conv.0"),
    ]  # fmt: skip
    assert mobilenet[-2:] == [("17.conv.2", "17.conv.1", "17"), ("18.0", "17", "18")]
    assert [tuple(wire) for wire in build_mlp(config("mlp")).wires()] == [
        ("fc1.0", None, "fc1"),
        ("fc2.0", "fc1", "fc2"),
    ]


@pytest.mark.parametrize("name", STRIDES)
def test_wires_name_every_layer_once_and_units_of_its_width(name):
    body, _, _ = build_body(config(name), ("res5",))
    layers = {path: layer for path, layer in body.named_modules() if isinstance(layer, nn.Conv2d)}
    widths: dict[str, int] = {}
    wires = body.wires()
    for path in {wire.makes for wire in wires}:
        body.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: widths.update({path: output.shape[1]})
        )
    with torch.no_grad():
        body.eval()(torch.zeros(1, 3, 64, 64))
    assert sorted(wire.layer for wire in wires) == sorted(layers)
    assert all(widths[wire.makes] == layers[wire.layer].out_channels for wire in wires)
    assert all(wire.reads is None or widths[wire.reads] == layers[wire.layer].in_channels for wire in wires)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"NAME": "vgg"}, r"MODEL\.BACKBONE\.NAME: expected one of resnet18, resnet50, mobilenet_v2, got 'vgg'"),
        ({"NORM": "GN"}, r"MODEL\.BACKBONE\.NORM: expected one of BN, FrozenBN, none, got 'GN'"),
        ({"NAME": "mobilenet_v2", "WIDTH": 32}, r"MODEL\.BACKBONE\.WIDTH.*only 64, got 32"),
    ],
)
def test_an_unknown_backbone_names_the_key_and_what_is_known(backbone, message):
    with pytest.raises(ConfigError, match=message):
        build_network(config(**backbone))
