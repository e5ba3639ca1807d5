"""HAT: an earlier task's predictions stay, whatever the optimiser carries along, and each head has its own masks."""

import copy
from functools import partial

import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config
from torch import nn

from incdet.config import config_for_task
from incdet.engine.slots import install_slots
from incdet.errors import CheckpointError, ConfigError
from incdet.methods.hat import EMBEDDINGS, Hat, free_updates, load_masks, masked, trained_wires
from incdet.structures import Batch

KEYS = (
    "TASK", "classification", "TASKS.SPLIT", "2+2", "MODEL.CLASSIFIER.MULTI_HEAD", True, "MODEL.BACKBONE.NAME", "mlp",
    "MODEL.BACKBONE.WIDTH", 32, "MODEL.BACKBONE.FREEZE_AT", 0, "INPUT.MIN_SIZE_TRAIN", (8,), "INPUT.MIN_SIZE_TEST", 8,
    "SOLVER.IMS_PER_BATCH", 2, "INPUT.RANDOM_FLIP", "none",
)  # fmt: skip
RESNET18 = ("MODEL.BACKBONE.NAME", "resnet18", "MODEL.BACKBONE.WIDTH", 8)
RESNET50 = ("MODEL.BACKBONE.NAME", "resnet50", "MODEL.BACKBONE.WIDTH", 8)
MOBILENET = ("MODEL.BACKBONE.NAME", "mobilenet_v2", "MODEL.BACKBONE.WIDTH", 64)
NO_NORM, FROZEN_NORM = ("MODEL.BACKBONE.NORM", "none"), ("MODEL.BACKBONE.NORM", "FrozenBN")
FIXED_LATER = ("NEXT_TASKS.MODEL.BACKBONE.FREEZE_NORM", True)
NETWORKS = {
    "mlp": (),
    "resnet18": (*RESNET18, *NO_NORM),
    "resnet18_norms_fixed_later": (*RESNET18, *FIXED_LATER),
    "resnet18_frozen_stages": (*RESNET18, *FROZEN_NORM, "MODEL.BACKBONE.FREEZE_AT", 2),
    "resnet18_frozen_later": (*RESNET18, *FROZEN_NORM, "NEXT_TASKS.MODEL.BACKBONE.FREEZE_AT", 2),
    "resnet18_frozen_before": (
        *RESNET18, *FROZEN_NORM, "MODEL.BACKBONE.FREEZE_AT", 2, "NEXT_TASKS.MODEL.BACKBONE.FREEZE_AT", 0,
    ),
    "resnet50": (*RESNET50, *FROZEN_NORM),
    "mobilenet_v2": (*MOBILENET, *NO_NORM),
    "mobilenet_v2_norms_fixed_later": (*MOBILENET, *FIXED_LATER),
}  # fmt: skip
SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01)
QUICK = partial(SGD, lr=0.01)
OPTIMIZERS = {"sgd": partial(SGD, lr=0.001), "adamw": partial(torch.optim.AdamW, lr=0.001, weight_decay=0.1)}
IMAGES = list(torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def world_of(folder, *overrides) -> World:
    cfg = tiny_config("fpn", *KEYS)
    if overrides:
        cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, *overrides])
    world = World(folder, cfg, texts=("a", "b", "a", "b", "a", "c", "d", "c", "d"))
    for layer in world.first.modules():  # without norms, signals die away in MobileNet's own
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return world


@pytest.fixture
def world(tmp_path) -> World:
    return world_of(tmp_path)


def method(world: World) -> Hat:
    return Hat(world.cfg.METHOD.HAT)


def train(world: World, task, student, methods, steps: int = 12, optimizer=QUICK, decided=False):
    """``decided``: embeddings begin so far from 0 that masks end as exact zeros and ones, as after a long training."""
    context = world.context(task, student)
    for each in methods:
        each.begin_task(context)
    for embedding in getattr(student, EMBEDDINGS).values() if decided else ():
        embedding.data = torch.where(embedding > -1, 5.0, -5.0)  # one in six is not claimed
    learner, view = world._begin(task, [], student, None)
    learner.methods = methods
    optimizer = optimizer([parameter for parameter in learner.parameters() if parameter.requires_grad])
    for iteration in range(steps):
        losses = learner(world.batch(view, iteration))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        with learner.around_update():
            optimizer.step()
    for each in methods:
        each.refine(context)
    install_slots(student, methods, context.task_folder)
    return student


def second_task(world: World, methods, **how):
    student, backbone = copy.deepcopy(world.first), config_for_task(world.cfg, 2).MODEL.BACKBONE
    student.conditions = None
    student.expand_classes(2)
    student.freeze(backbone.FREEZE_AT, backbone.FREEZE_NORM)
    return train(world, SECOND, student, methods, **{"steps": 50, **how})


def scores(detector, labels: range) -> torch.Tensor:
    """(images, classes) of some classes, in the order of their labels."""
    found = detector.predict(IMAGES)
    return torch.stack([one.scores[one.labels.argsort()] for one in found])[:, list(labels)]


def test_the_first_tasks_predictions_stay_while_the_backbone_learns(world, monkeypatch):
    hat = method(world)
    train(world, FIRST, world.first, [hat])
    before = scores(world.first, range(2))
    assert before.std(dim=0).min() > 0.01
    student = second_task(world, [hat])
    assert torch.allclose(scores(student, range(2)), before, atol=1e-4)
    monkeypatch.setattr("incdet.methods.hat.free_updates", lambda *_: [])
    assert not torch.allclose(scores(second_task(world, [method(world)]), range(2)), before, atol=2e-3)
    first, second = (dict(detector.named_parameters()) for detector in (world.first, student))
    assert all(not torch.equal(first[n], second[n]) for n in first if n.startswith("backbone"))
    assert torch.equal(first["head.weight"], second["head.weight"][:2])


@torch.no_grad()
def logits(detector, images) -> torch.Tensor:
    """What the heads read, each through its own task's masks; in double precision, lest rounding hides or feigns."""
    twin = copy.deepcopy(detector).double().eval()
    return twin.read(twin.image_pass(Batch([image.double() for image in images], None)))[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("overrides", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_first_tasks_logits_stay_for_any_image_on_every_backbone(tmp_path, overrides, optimizer):
    world = world_of(tmp_path, *overrides)
    hat, how = method(world), {"steps": 6, "optimizer": optimizer, "decided": True}
    hat.check(world.cfg)
    train(world, FIRST, world.first, [hat], **how)
    side = world.cfg.INPUT.MIN_SIZE_TEST
    images = list(3 * torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(1)))
    before, old = logits(world.first, images), copy.deepcopy(world.first.state_dict())
    assert before.std(dim=0).min() > 1e-3 * before.abs().max()
    student = second_task(world, [hat], **how)
    masks = torch.cat([rows.flatten() for rows in load_masks(tmp_path / "task_2").values()])
    assert set(masks.tolist()) == {0.0, 1.0}
    assert (logits(student, images)[:, :2] - before).abs().max() <= 1e-12 * before.abs().max()
    shares = dict(free_updates(student, hat._used, 2))
    learned = {name: p for name, p in student.named_parameters() if p in shares and p.ndim > 1}
    assert {torch.equal(old[n], p[: len(old[n])]) for n, p in learned.items()} == {True, False}
    assert all(torch.equal(old[n], p) != shares[p].any() for n, p in learned.items() if n != "head.weight")


@pytest.mark.parametrize(("name", "frozen_in"), [("resnet18_frozen_before", 0), ("resnet18_frozen_later", 1)])
def test_a_task_that_found_units_frozen_uses_all_of_them(tmp_path, name, frozen_in):
    world = world_of(tmp_path, *NETWORKS[name])
    hat, how = method(world), {"steps": 1, "decided": True}
    train(world, FIRST, world.first, [hat], **how)
    second_task(world, [hat], **how)
    masks = load_masks(tmp_path / "task_2")
    assert [rows.all().item() for rows in masks["layer1.1"]] == [frozen_in == 0, frozen_in == 1]
    assert not masks["layer4.1"].all(dim=1).any()


@pytest.mark.parametrize("name", ["mlp", "resnet18", "resnet18_frozen_stages", "resnet50", "mobilenet_v2"])
def test_nothing_that_may_change_is_read(tmp_path, name):
    student, generator = world_of(tmp_path, *NETWORKS[name]).first, torch.Generator().manual_seed(0)
    widths = {wire.makes: len(layer.weight) for wire, layer in trained_wires(student)}
    used = {units: (torch.rand(width, generator=generator) < 0.8).float() for units, width in widths.items()}
    free = free_updates(student, used, num_old=student.num_classes)
    assert {parameter for parameter, _ in free} == {p for p in student.parameters() if p.requires_grad}
    side = 64 if NETWORKS[name] else 8
    images = list(torch.randn(4, 3, side, side, generator=generator))
    before = masked_logits(student, used, images)
    with torch.no_grad():
        for parameter, share in free:
            parameter += share * torch.randn(parameter.shape, generator=generator)
    assert (masked_logits(student, used, images) - before).abs().max() <= 1e-12 * before.abs().max()


def masked_logits(detector, masks, images) -> torch.Tensor:
    twin = copy.deepcopy(detector)
    with masked(twin, masks, masks.__getitem__):
        return logits(twin, images)


@pytest.mark.parametrize(
    ("name", "units", "to", "out_of"),
    [
        ("mlp", "fc1", ["fc1.0"], ["fc2.0"]),
        ("resnet18", "bn1", ["conv1"], ["layer1.0.conv1"]),
        ("resnet18", "layer1.0.bn1", ["layer1.0.conv1"], ["layer1.0.conv2"]),
        ("resnet18", "layer1.1", ["layer1.1.conv2"], ["layer2.0.conv1", "layer2.0.downsample.0"]),
        ("resnet18", "layer2.0", ["layer2.0.conv2", "layer2.0.downsample.0"], ["layer2.1.conv1"]),
        ("resnet18", "layer4.1", ["layer4.1.conv2"], []),
        ("resnet50", "layer3.0", ["layer3.0.conv3", "layer3.0.downsample.0"], ["layer3.1.conv1"]),
        ("mobilenet_v2", "3", ["3.conv.2"], ["4.conv.0.0"]),
        ("mobilenet_v2", "3.conv.1", ["3.conv.1.0"], ["3.conv.2"]),
    ],
)
def test_a_unit_that_no_task_uses_frees_what_leads_to_it_and_out_of_it(tmp_path, name, units, to, out_of):
    student = world_of(tmp_path, *NETWORKS[name]).first
    used = {wire.makes: torch.ones(len(layer.weight)) for wire, layer in trained_wires(student)}
    used[units][3] = 0
    names = {parameter: name for name, parameter in student.backbone.body.named_parameters()}
    shares = {names.get(parameter): share for parameter, share in free_updates(student, used, student.num_classes)}
    for layer in to:
        assert shares[f"{layer}.weight"].flatten(1).any(1).nonzero().tolist() == [[3]]
    for layer in out_of:
        assert shares[f"{layer}.weight"].any(0).flatten().nonzero().tolist() == [[3]]
    biases = {f"{layer}.bias" for layer in to if f"{layer}.bias" in shares}
    assert {name for name, share in shares.items() if share.any()} == {f"{n}.weight" for n in to + out_of} | biases


def test_a_channel_that_no_task_uses_frees_its_own_kernel_of_a_depthwise_convolution(tmp_path):
    student = world_of(tmp_path, *NETWORKS["mobilenet_v2"]).first
    used = {wire.makes: torch.ones(len(layer.weight)) for wire, layer in trained_wires(student)}
    used["3.conv.0"][3] = 0
    shares = dict(free_updates(student, used, student.num_classes))
    kernel = student.backbone.body["3"].conv[1][0].weight
    assert kernel.shape[1] == 1
    assert shares[kernel].flatten().nonzero().tolist() == [[3]]


def test_each_head_is_read_through_its_own_tasks_masks(world):
    hat = method(world)
    train(world, FIRST, world.first, [hat])
    student = second_task(world, [hat]).eval()
    masks = load_masks(world.folder / "task_2")
    assert {name: rows.shape for name, rows in masks.items()} == {"fc1": (2, 32), "fc2": (2, 32)}
    images = Batch(IMAGES, None)
    logits, _ = student.read(student.image_pass(images))
    for task, own in enumerate((slice(0, 2), slice(2, 4))):
        with masked(student, masks, lambda name, task=task: masks[name][task]):
            expected = student.region_pass(student.image_pass(images)).logits[:, own]
        assert torch.allclose(logits[:, own], expected)
    plain = student.region_pass(student.image_pass(images)).logits  # no hook was left behind
    assert not torch.allclose(plain, logits)


def test_the_masks_are_of_the_student_while_it_learns_only(world):
    hat, keys = method(world), set(world.first.state_dict())
    hat.begin_task(world.context(FIRST))
    assert {f"{EMBEDDINGS}.fc1", f"{EMBEDDINGS}.fc2"} == set(world.first.state_dict()) - keys
    hat.refine(world.context(FIRST))
    assert set(world.first.state_dict()) == keys
    assert hat.report()["hat"]["task_units"] == hat.report()["hat"]["used_units"]


def test_a_step_grows_the_scale_and_keeps_embeddings_within_bounds(world):
    hat = method(world)
    learner, view = world._begin(FIRST, [hat], world.first, None)
    seen = []
    for iteration in range(6):  # five images, two in a batch: three batches an epoch
        seen.append(hat._scale())
        with torch.no_grad():
            getattr(world.first, EMBEDDINGS)["fc1"].fill_(7.0)
        sum(learner(world.batch(view, iteration)).values()).backward()
        with learner.around_update():
            pass
        assert getattr(world.first, EMBEDDINGS)["fc1"].tolist() == [6.0] * 32
    assert seen == pytest.approx([1 / 400, (400 + 1 / 400) / 2, 400] * 2)


def test_a_resumed_task_goes_on_with_its_scale(world):
    hat, resumed = method(world), method(world)
    learner, _ = world._begin(FIRST, [hat], world.first, None)
    for _ in range(2):
        with learner.around_update():
            pass
    resumed.begin_task(world.context(FIRST, copy.deepcopy(world.first)))
    resumed.load_state_dict(hat.state_dict())
    assert resumed._scale() == hat._scale() == 400


def test_embeddings_are_drawn_by_the_seed(world):
    drawn = []
    for _ in range(2):
        torch.rand(3)  # whatever was drawn before
        student = copy.deepcopy(world.first)
        method(world).begin_task(world.context(FIRST, student))
        drawn.append(getattr(student, EMBEDDINGS)["fc2"])
    assert torch.equal(*drawn)


def test_one_head_for_all_tasks_is_refused(world):
    world.cfg.merge_from_list(["MODEL.CLASSIFIER.MULTI_HEAD", False])
    with pytest.raises(ConfigError, match=r"MODEL.CLASSIFIER.MULTI_HEAD: hat .* got False"):
        method(world).check(world.cfg)


@pytest.mark.parametrize("network", [RESNET18, RESNET50, MOBILENET])
def test_a_norm_that_learns_after_the_first_task_is_refused(world, network):
    check = method(world).check
    world.cfg.merge_from_list([*network, "MODEL.BACKBONE.NORM", "BN"])
    with pytest.raises(ConfigError, match=r"MODEL.BACKBONE.NORM: hat .* FrozenBN or none .* got BN.*FREEZE_NORM"):
        check(world.cfg)
    for mended in (NO_NORM, FROZEN_NORM, ("MODEL.BACKBONE.FREEZE_NORM", True), FIXED_LATER):
        cfg = world.cfg.clone()
        cfg.merge_from_list([*mended])
        check(cfg)


def test_a_backbone_without_a_stage_that_trains_is_refused(tmp_path):
    world = world_of(tmp_path, *RESNET18, *NO_NORM, "MODEL.BACKBONE.FREEZE_AT", 5)
    with pytest.raises(ConfigError, match=r"MODEL.BACKBONE.FREEZE_AT: hat .* got 5\. Take a smaller one"):
        method(world).begin_task(world.context(FIRST))


def test_a_missing_file_says_how_to_come_by_it(world):
    with pytest.raises(CheckpointError, match=r"hat\.safetensors .*cannot be read.*--resume"):
        method(world).conditions(world.folder)
