"""MAS: the importance is the paper's, image by image, and later tasks pay for moving what is important."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, random_batch, tiny_config

from incdet.data.images import read_image
from incdet.engine.learner import Learner
from incdet.errors import CheckpointError
from incdet.importance import load_importance, shared_parameters
from incdet.methods.mas import FILE, Mas
from incdet.structures import Batch

CLASSIFICATION = (
    "TASK",
    "classification",
    "TASKS.SPLIT",
    "2+2",
    "INPUT.MIN_SIZE_TRAIN",
    (32,),
    "INPUT.MIN_SIZE_TEST",
    32,
)


def world_of(tmp_path, *overrides) -> World:
    return World(tmp_path, tiny_config("fpn", *CLASSIFICATION, *overrides), texts=("a", "b", "a", "c", "d"))


def method(world: World, **changes) -> Mas:
    node = world.cfg.METHOD.MAS.clone()
    node.update(changes)
    return Mas(node)


def expected_importance(world: World, detector, task, columns: slice) -> dict[str, torch.Tensor]:
    """The paper's definition, spelled out: one backward pass per image."""
    images = world.context(task).view.images
    parameters = shared_parameters(detector)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for image in images:
        pixels = read_image(image.record.path).float() / 255
        with detector.evaluating():
            logits = detector.region_pass(detector.image_pass(Batch([pixels], None))).logits[:, columns]
        gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient.abs() / len(images)
    return total


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.allclose(found[n], expected[n], rtol=1e-4) for n in found)


def test_the_importance_is_an_explicit_loops(tmp_path):
    world = world_of(tmp_path)
    method(world).end_task(world.context(FIRST))
    expected = expected_importance(world, world.first, FIRST, slice(None))
    assert same(load_importance(tmp_path / "task_1" / FILE), expected)
    assert all("head" not in name for name in expected)


@pytest.mark.parametrize("multi_head", [False, True])
def test_importances_of_tasks_add_up_each_by_the_heads_that_its_images_have(tmp_path, multi_head):
    world = world_of(tmp_path, "MODEL.CLASSIFIER.MULTI_HEAD", multi_head)
    method(world).end_task(world.context(FIRST))
    student = copy.deepcopy(world.first)
    student.expand_classes(2)
    method(world).end_task(world.context(SECOND, student))
    first = expected_importance(world, world.first, FIRST, slice(None))
    second = expected_importance(world, student, SECOND, slice(2, None) if multi_head else slice(None))
    expected = {name: weight + second[name] for name, weight in first.items()}
    assert same(load_importance(tmp_path / "task_2" / FILE), expected)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_strong_penalty_keeps_the_important_parameters(tmp_path, optimizer):
    world, moved = world_of(tmp_path, "SOLVER.BASE_LR", 1e-3), []
    for weight in (0.0, 1000.0):
        mas = method(world, WEIGHT=weight)
        learner, view = world.begin_second([mas])
        importance = load_importance(tmp_path / "task_1" / FILE)
        steps = optimizer([p for p in learner.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(8):
            losses = learner(world.batch(view))
            steps.zero_grad()
            sum(losses.values()).backward()
            steps.step()
        old, new = dict(world.first.named_parameters()), dict(learner.student.named_parameters())
        moved.append(sum((weight * (new[n] - old[n]).square()).sum().item() for n, weight in importance.items()))
    assert 0 < moved[1] < 0.6 * moved[0]


def test_the_first_task_pays_nothing_and_the_second_for_what_it_moves(tmp_path):
    world = world_of(tmp_path)
    mas = method(world)
    mas.begin_task(world.context(FIRST))
    assert "loss_mas" not in Learner(world.first.train(), None, [mas], FIRST)(world.batch(world.context(FIRST).view))
    learner, view = world.begin_second([mas])
    assert learner(world.batch(view))["loss_mas"].item() == 0
    with torch.no_grad():
        learner.student.backbone.body["layer4"][1].conv2.weight.add_(0.01)
    assert learner(world.batch(view))["loss_mas"].item() > 0


def test_in_detection_regions_are_sampled_by_the_seed_and_what_they_do_not_reach_is_free(tmp_path):
    world = World(tmp_path, tiny_config("fpn"))
    found = []
    for _ in range(2):
        torch.rand(7)  # whatever was drawn before
        method(world, IMAGES=3).end_task(world.context(FIRST))
        found.append(load_importance(tmp_path / "task_1" / FILE))
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
    assert any(name.startswith("roi_heads.box_head") for name in found[0])
    assert not any("rpn" in name or "box_predictor" in name for name in found[0])
    learner, _ = world.begin_second([method(world, IMAGES=3)])
    assert learner(random_batch(2, SECOND.num_seen))["loss_mas"].item() == 0


def test_a_missing_file_says_how_to_come_by_it(tmp_path):
    world = world_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"mas\.safetensors .*cannot be read.*--resume"):
        method(world).begin_task(world.context(SECOND))
