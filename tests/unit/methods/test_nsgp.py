"""NSGP: what projected layers make of old inputs stays, whatever the optimiser carries along."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, random_batch, random_images, tiny_config
from torch import nn

from incdet.engine.learner import Learner
from incdet.errors import CheckpointError, ConfigError
from incdet.methods.nsgp import FILE, KIND, Nsgp
from incdet.structures import Batch
from incdet.subspace import layers_of
from incdet.tensors import load_tensors

BACKENDS = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.05),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5),
}


def method(world: World, **changes) -> Nsgp:
    node = world.cfg.METHOD.NSGP.clone()
    node.update({"PATCHES": 10**5, **changes})
    return Nsgp(node)


def world_of(tmp_path, backend: str = "torchvision", neck: str = "fpn", *overrides) -> World:
    cfg = tiny_config(neck, "BACKEND", backend, "MODEL.BACKBONE.FREEZE_NORM", True, *overrides)
    world = World(tmp_path, cfg)
    world.first.freeze(cfg.MODEL.BACKBONE.FREEZE_AT, norm=True)
    return world


def inputs_of_layers(world: World, detector) -> dict[str, torch.Tensor]:
    """What every trained layer of the backbone is given on the first task's images, through the first detector."""
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0].detach()}))
        for name, layer in layers_of(detector.backbone)
    ]
    context = world.context(FIRST)
    context.detect(detector, context.view.images, "inputs")
    for handle in handles:
        handle.remove()
    return inputs


def train(world: World, methods, kind: str, steps: int = 3):
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    context = world.context(SECOND, student)
    for each in methods:
        each.begin_task(context)
    learner = Learner(student.train(), None, methods, SECOND)
    optimizer = OPTIMIZERS[kind]([p for p in student.parameters() if p.requires_grad])
    for step in range(steps):
        torch.manual_seed(step)
        losses = learner(random_batch(2, SECOND.num_seen, seed=step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        with learner.around_update():
            optimizer.step()
    return student


def changes(world: World, student, inputs) -> dict[str, float]:
    """How much each layer's outputs of its old inputs changed, biases apart, as a share of what they were."""
    before = dict(layers_of(world.first.backbone))
    shares = {}
    for name, layer in layers_of(student.backbone):
        with torch.no_grad():
            outputs = [_bare(one, inputs[name]) for one in (before[name], layer)]
        shares[name] = ((outputs[1] - outputs[0]).norm() / outputs[0].norm()).item()
    return shares


def _bare(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("neck", "kind"), [("fpn", "AdamW"), ("c4", "SGD")])
def test_old_outputs_of_projected_layers_stay_and_others_move(tmp_path, backend, neck, kind):
    world = world_of(tmp_path, backend, neck)
    nsgp = method(world, ENERGY=0.9999)
    nsgp.end_task(world.context(FIRST))
    inputs = inputs_of_layers(world, world.first)
    free = changes(world, train(world, [], kind), inputs)
    student = train(world, [nsgp], kind)
    projected = changes(world, student, inputs)
    assert min(free.values()) > 0.005
    assert max(projected.values()) < 0.02
    assert all(projected[name] < free[name] / 5 for name in free)
    weights = zip(layers_of(world.first.backbone), layers_of(student.backbone), strict=True)
    assert any(not torch.equal(one.weight, other.weight) for (_, one), (_, other) in weights)


def test_a_lower_energy_leaves_more_to_learn(tmp_path):
    world = world_of(tmp_path)
    shares = []
    for energy in (0.5, 0.9, 1.0):
        nsgp = method(world, ENERGY=energy)
        nsgp.end_task(world.context(FIRST))
        nsgp.begin_task(world.context(SECOND))
        shares.append(nsgp.report()["null_space"]["free_share"])
    assert shares[0] > shares[1] > shares[2] >= 0


@pytest.mark.parametrize("freeze", [True, False])
def test_biases_and_norms_stay_if_asked(tmp_path, freeze):
    world = world_of(tmp_path)
    nsgp = method(world, FREEZE_REST=freeze)
    nsgp.end_task(world.context(FIRST))
    student = train(world, [nsgp], "SGD")
    before = dict(world.first.named_parameters())
    biases = {n: torch.equal(p, before[n]) for n, p in student.named_parameters() if "fpn" in n and n.endswith("bias")}
    assert biases
    assert set(biases.values()) == {freeze}
    assert not torch.equal(student.box_head.state_dict()["fc6.weight"], world.first.box_head.state_dict()["fc6.weight"])


def test_the_first_task_trains_freely(tmp_path):
    world = world_of(tmp_path)
    nsgp = method(world)
    nsgp.begin_task(world.context(FIRST))
    weight = nn.Parameter(torch.ones(1))
    with nsgp.around_update({"backbone.body.conv1.weight": weight}):
        weight.data += 1
    assert weight.item() == 2
    assert nsgp.report() == {}


def test_tasks_are_weighted_by_their_images(tmp_path):
    world = world_of(tmp_path)
    nsgp = method(world, ENERGY=1.0)
    nsgp.end_task(world.context(FIRST))
    first, seen = load_tensors(tmp_path / "task_1" / FILE, KIND, "")
    nsgp.end_task(world.context(SECOND))
    both, seen_then = load_tensors(tmp_path / "task_2" / FILE, KIND, "")
    (tmp_path / "task_2" / FILE).rename(tmp_path / "kept")
    (alone := method(world, ENERGY=1.0))._earlier = lambda context: ({}, 0)
    alone.end_task(world.context(SECOND))
    second, new = load_tensors(tmp_path / "task_2" / FILE, KIND, "")
    assert seen_then == seen + new
    for name, rows in both.items():
        moments = [part[name].transpose(1, 2) @ part[name] for part in (first, second)]
        expected = (seen * moments[0] + new * moments[1]) / seen_then
        assert (rows.transpose(1, 2) @ rows - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_layer_that_no_longer_trains_keeps_what_it_had(tmp_path):
    world = world_of(tmp_path)
    nsgp = method(world)
    nsgp.end_task(world.context(FIRST))
    names = set(load_tensors(tmp_path / "task_1" / FILE, KIND, "")[0])
    world.first.freeze(4, norm=True)
    nsgp.end_task(world.context(SECOND))
    assert set(load_tensors(tmp_path / "task_2" / FILE, KIND, "")[0]) == names


def test_depthwise_convolutions_are_projected_group_by_group(tmp_path):
    world = world_of(
        tmp_path, "torchvision", "fpn",
        "MODEL.BACKBONE.NAME", "mobilenet_v2", "MODEL.BACKBONE.WIDTH", 64, "MODEL.BACKBONE.NORM", "none",
        "MODEL.BACKBONE.FREEZE_AT", 4, "MODEL.FPN.IN_FEATURES", ("res4", "res5"),
        "MODEL.ANCHOR_GENERATOR.SIZES", ((16,), (32,), (64,)),
    )  # fmt: skip
    nsgp = method(world)
    nsgp.end_task(world.context(FIRST))
    directions, _ = load_tensors(tmp_path / "task_1" / FILE, KIND, "")
    layers = dict(layers_of(world.first.backbone))
    depthwise = [name for name, layer in layers.items() if layer.groups > 1]
    assert depthwise
    assert all(
        directions[name].shape[0] == layers[name].groups and directions[name].shape[2] == 9 for name in depthwise
    )
    student = train(world, [nsgp], "SGD", steps=1)
    with torch.no_grad(), student.evaluating():
        outputs = student.image_pass(Batch(random_images(1), None))
    assert all(features.isfinite().all() for features in outputs.features.values())


def test_a_missing_file_says_how_to_come_by_it(tmp_path):
    world = world_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"layer_inputs\.safetensors .*cannot be read.*--resume"):
        method(world).begin_task(world.context(SECOND))


@pytest.mark.parametrize("energy", [0.0, 1.5])
def test_an_energy_that_is_no_share_is_refused(tmp_path, energy):
    with pytest.raises(ConfigError, match=r"METHOD\.NSGP\.ENERGY: expected a share"):
        method(world_of(tmp_path), ENERGY=energy)
