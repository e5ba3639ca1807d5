"""Weights come from every format, under every naming, and never by running what a file says."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import WeightsEnum, resnet18
from torchvision.models.resnet import BasicBlock, ResNet

from incdet.backends.names import torchvision_name
from incdet.backends.weights import (
    MatchReport,
    load_into,
    load_weights,
    read_model,
    save_model,
)
from incdet.errors import CheckpointError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "weights"


@pytest.fixture
def state():
    return {"conv1.weight": torch.arange(4.0).reshape(2, 2), "bn1.bias": torch.tensor([1.0, -1.0])}


def tiny_resnet(**kwargs) -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, **kwargs)


class TinyDetector(nn.Module):
    """The names of a detector: an FPN one has ``layer4`` in its body, a C4 one as its box head."""

    def __init__(self, network: ResNet, c4: bool, classes: int = 2):
        super().__init__()
        body = nn.ModuleDict({name: child for name, child in network.named_children() if name != "fc"})
        self.roi_heads = nn.Module()
        if c4:
            self.roi_heads.box_head = body.pop("layer4")
        self.roi_heads.box_predictor = nn.Linear(4, classes + 1)
        self.backbone = nn.Module()
        self.backbone.body = body


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# ---------------------------------------------------------------------- formats


def write_pkl(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_detectron2_pickle_is_read_and_renamed(tmp_path, protocol):
    model = {
        "stem.conv1.weight": np.ones((2, 3, 1, 1), np.float32),
        "backbone.bottom_up.res2.0.shortcut.norm.bias": np.arange(2, dtype=np.float32),
    }
    content = {"model": model, "__author__": "someone", "matching_heuristics": True, "score": np.float64(0.5)}
    write_pkl(tmp_path / "R.pkl", content, protocol)
    state = load_weights(tmp_path / "R.pkl")
    assert sorted(state) == ["conv1.weight", "layer1.0.downsample.1.bias"]
    assert torch.equal(state["layer1.0.downsample.1.bias"], torch.tensor([0.0, 1.0]))


def test_a_count_of_no_dimension_keeps_it(tmp_path):
    write_pkl(tmp_path / "a.pkl", {"model": {"bn1.num_batches_tracked": np.array(7), "a": np.ones((2, 3), order="F")}})
    state = load_weights(tmp_path / "a.pkl")
    assert state["bn1.num_batches_tracked"].shape == ()
    assert state["a"].shape == (2, 3)


def test_a_pickle_with_numpy_1_module_names_is_read(tmp_path):
    text = pickle.dumps({"model": {"a": np.ones(3, np.float32)}}, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "old.pkl").write_bytes(text)
    assert torch.equal(load_weights(tmp_path / "old.pkl")["a"], torch.ones(3))


def test_caffe2_blobs_are_renamed_and_their_stem_takes_our_pixels(tmp_path):
    generator = np.random.default_rng(0)
    stem = generator.normal(size=(4, 3, 3, 3)).astype(np.float32)
    blobs = {
        "conv1_w": stem,
        "res_conv1_bn_s": np.ones(4, np.float32),
        "res2_0_branch1_w": np.ones((1, 1, 1, 1), np.float32),
        "res2_0_branch1_bn_b": np.ones(1, np.float32),
        "res5_2_branch2c_bn_riv": np.ones(1, np.float32),
        "res5_2_branch2c_w_momentum": np.ones(1, np.float32),
        "weight_order": "text",
    }
    write_pkl(tmp_path / "R.pkl", {"blobs": blobs})
    state = load_weights(tmp_path / "R.pkl")
    assert sorted(state) == [
        "bn1.weight",
        "conv1.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.bias",
        "layer4.2.bn3.running_var",
    ]
    rgb = torch.rand(1, 3, 8, 8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    bgr = 255 * (rgb - mean).flip(1)
    ours = nn.functional.conv2d((rgb - mean) / std, state["conv1.weight"])
    theirs = nn.functional.conv2d(bgr, torch.from_numpy(stem))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    content = {"model": {"a": np.ones(1), "b": Bomb(tmp_path / "made")}}
    if suffix == ".pkl":
        write_pkl(path, content)
    else:
        torch.save({"a": torch.ones(1), "b": Bomb(tmp_path / "made")}, path)
    with pytest.raises(CheckpointError, match=rf"bomb\{suffix}.*could run code"):
        load_weights(path)
    assert not (tmp_path / "made").exists()


def test_a_bomb_inside_an_object_array_or_a_codec_is_refused(tmp_path):
    write_pkl(tmp_path / "a.pkl", {"model": np.array([Bomb(tmp_path / "made")], dtype=object)})
    (tmp_path / "b.pkl").write_bytes(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.")
    for name in ("a.pkl", "b.pkl"):
        with pytest.raises(CheckpointError, match=name):
            load_weights(tmp_path / name)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_pth_is_read_with_and_without_a_wrapper(tmp_path, state, wrapper):
    torch.save({wrapper: state, "iteration": 3} if wrapper else state, tmp_path / "a.pth")
    assert_same(load_weights(tmp_path / "a.pth"), state)


def test_an_npz_is_read_and_one_with_objects_is_refused(tmp_path, state):
    np.savez(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    assert_same(load_weights(tmp_path / "a.npz"), state)
    np.savez(tmp_path / "b.npz", a=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match=r"b\.npz.*allow_pickle"):
        load_weights(tmp_path / "b.npz")


def test_save_and_read_give_the_same_bits_and_the_metadata(tmp_path, state):
    state["half"] = torch.rand(3, 5).half().t()
    save_model(tmp_path / "model.safetensors", state, {"task": "2", "classes": "[]"})
    again, metadata = read_model(tmp_path / "model.safetensors")
    assert_same(again, state)
    assert metadata == {"task": "2", "classes": "[]"}
    assert_same(load_weights(tmp_path / "model.safetensors"), state)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl", ".npz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_named_with_the_remedy(tmp_path, suffix, kept):
    whole = tmp_path / f"whole{suffix}"
    state = {"a": torch.rand(64, 64), "b": torch.rand(64)}
    if suffix == ".safetensors":
        save_model(whole, state, {})
    elif suffix == ".pth":
        torch.save(state, whole)
    elif suffix == ".pkl":
        write_pkl(whole, {"model": {name: tensor.numpy() for name, tensor in state.items()}})
    else:
        np.savez(whole, **{name: tensor.numpy() for name, tensor in state.items()})
    assert_same(load_weights(whole), state)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=rf"cut\{suffix}.*(damaged|download)"):
        load_weights(cut)
    if suffix == ".safetensors":
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            read_model(cut)


def test_sources_that_cannot_be_meant(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth does not exist"):
        load_weights(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"ends in '\.h5'; expected \.safetensors"):
        load_weights("model.h5")
    with pytest.raises(CheckpointError, match=r"no weights called.*Did you mean ResNet18_Weights\.IMAGENET1K_V1"):
        load_weights("torchvision://ResNet18_Weights.IMAGENET_V1")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_weights(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        load_weights(tmp_path / "none.pth")


def test_torchvision_enums_are_fetched_by_torchvision(monkeypatch, state):
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: state if "18" in str(self) else None)
    assert_same(load_weights("torchvision://ResNet18_Weights.IMAGENET1K_V1"), state)

    def no_network(self, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", no_network)
    with pytest.raises(CheckpointError, match=r"no route to host.*set MODEL\.WEIGHTS to its path"):
        load_weights("torchvision://ResNet18_Weights.IMAGENET1K_V1")


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stem.conv1.weight", "conv1.weight"),
        ("stem.conv1.norm.running_var", "bn1.running_var"),
        ("res2.0.conv1.norm.weight", "layer1.0.bn1.weight"),
        ("res3.1.conv3.weight", "layer2.1.conv3.weight"),
        ("res4.0.shortcut.weight", "layer3.0.downsample.0.weight"),
        ("backbone.res4.0.shortcut.norm.bias", "layer3.0.downsample.1.bias"),
        ("backbone.bottom_up.stem.conv1.weight", "conv1.weight"),
        ("roi_heads.res5.2.conv2.weight", "layer4.2.conv2.weight"),
        ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_score.weight"),
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
    ],
)
def test_detectron2_names_become_torchvisions(theirs, ours):
    assert torchvision_name(theirs) == ours


@pytest.mark.parametrize("c4", [False, True])
def test_a_classification_network_loads_into_a_detector(c4):
    source = tiny_resnet()
    detector = TinyDetector(tiny_resnet(), c4)
    report = load_into(detector, source.state_dict())
    head = "roi_heads.box_head." if c4 else "backbone.body.layer4."
    assert torch.equal(detector.state_dict()[f"{head}0.conv1.weight"], source.layer4[0].conv1.weight)
    assert torch.equal(detector.backbone.body["layer1"][0].bn1.weight, source.layer1[0].bn1.weight)
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert report.missing == ("roi_heads.box_predictor.weight", "roi_heads.box_predictor.bias")
    assert len(report.matched) == len(source.state_dict()) - 2


def test_an_exact_name_goes_before_a_prefix_and_no_place_is_taken_twice():
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)})})
    first, second = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    report = load_into(model, {"a.weight": first, "old.a.weight": second}, prefixes=[("old.", ""), ("old.", "b.")])
    assert model["a"].weight.item() == 1
    assert model["b"]["a"].weight.item() == 2
    assert set(report.matched) == {"a.weight", "b.a.weight"}


def test_another_number_of_classes_is_reported_or_refused():
    state = TinyDetector(tiny_resnet(), c4=False, classes=2).state_dict()
    model = TinyDetector(tiny_resnet(), c4=False, classes=5)
    before = model.roi_heads.box_predictor.weight.clone()
    report = load_into(model, state)
    assert report.shape_mismatch == (
        ("roi_heads.box_predictor.weight", (3, 4), (6, 4)),
        ("roi_heads.box_predictor.bias", (3,), (6,)),
    )
    assert torch.equal(model.roi_heads.box_predictor.weight, before)
    with pytest.raises(CheckpointError, match=r"m\.safetensors knows another number of classes.*\[3, 4\].*\[6, 4\]"):
        load_into(model, state, strict=True, source="m.safetensors")


def test_another_network_is_refused_and_nothing_is_copied():
    model = resnet18()
    before = model.conv1.weight.clone()
    state = tiny_resnet(width_per_group=64).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    with pytest.raises(CheckpointError, match=r"w\.pth is of another network.*layer1\.0\.conv1\.weight is \[64, 64, 1"):
        load_into(model, state, source="w.pth")
    assert torch.equal(model.conv1.weight, before)
    with pytest.raises(CheckpointError, match=r"another network.*0 tensors loaded"):
        load_into(model, {"nothing.here": torch.ones(1)})


def test_strict_wants_every_tensor():
    model = nn.Linear(2, 2)
    state = dict(model.state_dict())
    assert load_into(model, state, strict=True).matched == ("weight", "bias")
    with pytest.raises(CheckpointError, match=r"not in the file: bias"):
        load_into(model, {"weight": state["weight"]}, strict=True)
    with pytest.raises(CheckpointError, match=r"not in the model: extra"):
        load_into(model, {**state, "extra": torch.ones(1)}, strict=True)


def test_folded_norms_need_a_model_without_norms():
    folded = {"conv1.weight": torch.ones(64, 3, 7, 7), "conv1.bias": torch.ones(64)}
    with pytest.raises(CheckpointError, match=r"conv1\.bias has no place.*MODEL\.BACKBONE\.NORM to none"):
        load_into(tiny_resnet(), folded)
    folded["conv1.bias"].zero_()
    assert load_into(tiny_resnet(), folded).unexpected == ("conv1.bias",)


def test_the_report_reads_well():
    report = MatchReport(("a",), tuple("bcdefghi"), ("x",), (("w", (3, 4), (6, 4)),))
    assert str(report).splitlines() == [
        "1 tensors loaded",
        "8 of the model not in the file: b, c, d, e, f, g and 2 more",
        "1 of the file not in the model: x",
        "w: [3, 4] in the file, [6, 4] in the model",
    ]


def test_a_models_dtype_is_kept():
    model = nn.Linear(2, 1)
    load_into(model, {"weight": torch.ones(1, 2).double(), "bias": torch.ones(1).half()})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.ones(1, 2)).item() == 3


# ---------------------------------------------------------------------- real files


@pytest.mark.shared_data
def test_the_partial_resnet_fills_everything_but_the_last_stages_3x3():
    network = resnet18()
    report = load_into(TinyDetector(network, c4=True), load_weights(SHARED / "resnet18_torchvision_partial.npz"))
    absent = [name for name in report.missing if "box_predictor" not in name]
    assert absent == [f"roi_heads.box_head.{block}.conv{conv}.weight" for block in (0, 1) for conv in (1, 2)]
    assert network.conv1.weight.std() > 0.01


@pytest.mark.shared_data
def test_the_folded_mobilenet_is_refused_by_a_model_with_norms():
    from torchvision.models import mobilenet_v2

    state = load_weights(SHARED / "mobilenet_v2_features_bnfolded.npz")
    assert len(state) == 104
    with pytest.raises(CheckpointError, match="folded"):
        load_into(mobilenet_v2(), state)
