"""HAT: an earlier task's predictions stay, whatever the optimiser carries along, and each head has its own masks."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config

from incdet.engine.slots import install_slots
from incdet.errors import CheckpointError, ConfigError
from incdet.methods.hat import EMBEDDINGS, Hat, load_masks, masked
from incdet.structures import Batch

KEYS = (
    "TASK", "classification", "TASKS.SPLIT", "2+2", "MODEL.CLASSIFIER.MULTI_HEAD", True, "MODEL.BACKBONE.NAME", "mlp",
    "MODEL.BACKBONE.WIDTH", 32, "MODEL.BACKBONE.FREEZE_AT", 0, "INPUT.MIN_SIZE_TRAIN", (8,), "INPUT.MIN_SIZE_TEST", 8,
    "SOLVER.IMS_PER_BATCH", 2, "INPUT.RANDOM_FLIP", "none",
)  # fmt: skip
IMAGES = list(torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path, tiny_config("fpn", *KEYS), texts=("a", "b", "a", "b", "a", "c", "d", "c", "d"))


def method(world: World) -> Hat:
    return Hat(world.cfg.METHOD.HAT)


def train(world: World, task, student, methods, steps: int = 12):
    context = world.context(task, student)
    for each in methods:
        each.begin_task(context)
    learner, view = world._begin(task, [], student, None)
    learner.methods = methods
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
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


def second_task(world: World, methods):
    student = copy.deepcopy(world.first)
    student.conditions = None
    student.expand_classes(2)
    return train(world, SECOND, student, methods, steps=50)


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


def test_each_head_is_read_through_its_own_tasks_masks(world):
    hat = method(world)
    train(world, FIRST, world.first, [hat])
    student = second_task(world, [hat]).eval()
    masks = load_masks(world.folder / "task_2")
    assert {name: rows.shape for name, rows in masks.items()} == {"fc1": (2, 32), "fc2": (2, 32)}
    images = Batch(IMAGES, None)
    logits, _ = student.read(student.image_pass(images))
    for task, own in enumerate((slice(0, 2), slice(2, 4))):
        with masked(student, lambda name, task=task: masks[name][task]):
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


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.CLASSIFIER.MULTI_HEAD", False), ("MODEL.BACKBONE.NAME", "resnet18")]
)
def test_what_hat_is_not_defined_for_is_refused(world, key, value):
    method(world).check(world.cfg)
    world.cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=f"{key}: hat .* got {value}"):
        method(world).check(world.cfg)


def test_a_missing_file_says_how_to_come_by_it(world):
    with pytest.raises(CheckpointError, match=r"hat\.safetensors .*cannot be read.*--resume"):
        method(world).conditions(world.folder)
