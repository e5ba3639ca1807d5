"""MbPA: the adapted classifier against one that is adapted by autograd, what is stored, and what a row depends on."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, random_images, tiny_config
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from incdet.data.images import read_image
from incdet.engine.learner import freeze_copy
from incdet.engine.slots import install_slots
from incdet.errors import CheckpointError, ConfigError
from incdet.methods import build_methods
from incdet.methods.mbpa import FILE, KIND, LocalAdaptation, Mbpa, adaptation
from incdet.tensors import load_tensors

SMALL = (
    "INPUT.MIN_SIZE_TRAIN",
    (8,),
    "INPUT.MIN_SIZE_TEST",
    8,
    "MODEL.BACKBONE.NAME",
    "mlp",
    "MODEL.BACKBONE.WIDTH",
    8,
)
KEYS = ("TASK", "classification", "TASKS.SPLIT", "2+2", *SMALL)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config("fpn", *KEYS), "abcd" * 3)


def settings(world: World, **changes):
    node = world.cfg.METHOD.MBPA.clone()
    node.update({"NEIGHBOURS": 3, **changes})
    return node


def second(world: World, move: float = 0.0):
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    with torch.no_grad():
        student.box_head[0].bias += move
    return world.context(SECOND, student, freeze_copy(world.first))


def keys_after(world: World, context) -> dict[str, Tensor]:
    return load_tensors(context.task_folder / FILE, KIND, "")[0]


# ---------------------------------------------------------------------- the adaptation


def by_autograd(query, keys, labels, weights, layer, steps, rate, pull) -> Tensor:
    """One query's logits: the steps as the paper writes them, on a copy of the weights."""
    start = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    theta = start.clone().requires_grad_()
    with_one = torch.cat([keys, torch.ones(len(keys), 1)], dim=1)
    for _ in range(steps):
        likelihood = log_softmax(with_one @ theta.T, dim=1)[torch.arange(len(keys)), labels]
        goal = (weights * likelihood).sum() - (theta - start).square().sum() / (2 * pull)
        (gradient,) = torch.autograd.grad(goal, theta)
        theta = (theta + rate * gradient).detach().requires_grad_()
    return (torch.cat([query, torch.ones(1)]) @ theta.T).detach()


def test_the_steps_are_those_of_a_copied_classifier():
    torch.manual_seed(0)
    layer, queries, keys = torch.nn.Linear(5, 4), torch.randn(6, 5), torch.randn(6, 7, 5)
    labels, weights = torch.randint(4, (6, 7)), torch.rand(6, 7)
    with torch.no_grad():
        change = adaptation(queries, keys, layer(keys), one_hot(labels, 4).float(), weights, 8, 0.2, 3.0)
        found = layer(queries) + change
    expected = [
        by_autograd(q, k, y, w, layer, 8, 0.2, 3.0) for q, k, y, w in zip(queries, keys, labels, weights, strict=True)
    ]
    assert change.abs().max() > 0.5
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_step_by_hand():
    # One neighbour of class 0 at (1), p = (1/2, 1/2): its step is (1/2, -1/2) times the rate, for weight and bias.
    query, key, logits = torch.tensor([[3.0]]), torch.tensor([[[1.0]]]), torch.zeros(1, 1, 2)
    change = adaptation(query, key, logits, torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1), 1, 0.5, 10.0)
    torch.testing.assert_close(change, torch.tensor([[1.0, -1.0]]))  # 0.5 * 1/2 * (3 * 1 + 1)


def test_neighbours_weigh_by_their_distance(world):
    keys = torch.tensor([[0.0], [2.0], [9.0]])
    reading = LocalAdaptation(
        keys, torch.tensor([0, 1, 1]), [2], settings(world, NEIGHBOURS=2, EPSILON=1.0, STEPS=1, RATE=1.0)
    )
    logits = reading(torch.tensor([[0.0]]), lambda features: (torch.zeros(len(features), 2), features))
    # Weights 1 / (1 + 0) and 1 / (1 + 4), normalised 5/6 and 1/6; the query is at 0, so only the bias counts.
    torch.testing.assert_close(logits, torch.tensor([[0.5 * (5 - 1) / 6, -0.5 * (5 - 1) / 6]]))


def test_classes_of_other_heads_do_not_compete(world):
    reading = LocalAdaptation(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), [2, 3], settings(world))
    logits = torch.randn(5, 5)
    found = reading(torch.randn(5, 3), lambda features: (logits[: len(features)], features))
    assert torch.equal(found[:, 2:], logits[:, 2:])
    assert not torch.allclose(found[:, :2], logits[:, :2])


def test_no_row_depends_on_another_and_no_gradient_is_needed(world):
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 3)
    reading = LocalAdaptation(torch.randn(40, 6), torch.randint(3, (40,)), [3], settings(world, NEIGHBOURS=5))
    features = torch.randn(30, 6)
    predictor = lambda features: (layer(features), features)  # noqa: E731
    whole = reading(features, predictor)
    with torch.inference_mode():
        apart = torch.cat([reading(row[None], predictor) for row in features.flip(0)]).flip(0)
    torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-6)
    assert not whole.requires_grad


# ---------------------------------------------------------------------- the memory


def test_a_task_stores_features_of_its_classes(world):
    context = world.context(FIRST)
    mbpa = Mbpa(settings(world, KEYS_PER_CLASS=2))
    mbpa.end_task(context)
    stored = keys_after(world, context)
    assert stored["labels"].tolist() == [0, 0, 1, 1]
    assert stored["keys"].dtype == torch.float16
    features = torch.cat(context.features(world.first, context.view.images, "test")).half()
    assert all((features == key).all(dim=1).any() for key in stored["keys"])
    assert mbpa.report()["mbpa"] == {"keys": 4, "bytes": 4 * 8 * 2 + 4 * 8, "drift": "ridge"}


@pytest.mark.parametrize("drift", ["none", "shift"])
def test_old_features_stay_or_follow_the_drift(world, drift):
    mbpa = Mbpa(settings(world, DRIFT=drift))
    mbpa.end_task(world.context(FIRST))
    with torch.no_grad():
        world.first.box_head[0].bias += 20.0  # every unit is active, so that a change of the bias is a shift
    mbpa.end_task(world.context(FIRST))
    before, context = keys_after(world, world.context(FIRST)), second(world, move=1.0)
    mbpa.end_task(context)
    after = keys_after(world, context)
    assert after["labels"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    moved = after["keys"][:6].float() - before["keys"].float()
    torch.testing.assert_close(moved, torch.full_like(moved, float(drift == "shift")), rtol=0, atol=0.05)
    once = keys_after(world, context)
    mbpa.end_task(context)  # a second life may end the task again
    assert all(torch.equal(value, once[name]) for name, value in keys_after(world, context).items())


def test_a_forgotten_class_is_read_from_its_neighbours(world):
    context = world.context(FIRST)
    mbpa = Mbpa(settings(world, NEIGHBOURS=1, STEPS=50, RATE=0.5))
    mbpa.end_task(context)
    detector = copy.deepcopy(world.first)
    with torch.no_grad():
        detector.classifier.weight.zero_()
        detector.classifier.bias.copy_(torch.tensor([-1.0, 1.0]))  # class a is forgotten
    images = [context.view.images[row] for row in (0, 1)]
    pixels = [read_image(image.record.path).float() / 255 for image in images]
    labels = [int(image.labels[0]) for image in images]
    assert sorted(labels) == [0, 1]
    assert [found.labels[0].item() for found in detector.predict(pixels)] == [1, 1]
    install_slots(detector, [mbpa], context.task_folder)
    assert [found.labels[0].item() for found in detector.predict(pixels)] == labels


def test_only_one_process_writes(world):
    context = world.context(FIRST, is_main=False)
    Mbpa(settings(world)).end_task(context)
    assert not (context.task_folder / FILE).exists()


def test_predictions_come_with_the_file_alone(world):
    context = world.context(FIRST)
    Mbpa(settings(world)).end_task(context)
    results = []
    for _ in range(2):
        detector = copy.deepcopy(world.first)
        install_slots(detector, [Mbpa(settings(world))], context.task_folder)
        results.append(detector.predict(random_images(3)))
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(*results, strict=True))


def test_a_missing_file_says_how_to_come_by_it(world):
    with pytest.raises(CheckpointError, match=r"keys\.safetensors .*cannot be read.*learn that task again"):
        Mbpa(settings(world)).end_task(second(world))


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(("key", "value"), [("DRIFT", "affine"), ("EPSILON", 0.0), ("NEIGHBOURS", 0), ("PULL", -1.0)])
def test_a_wrong_setting_is_refused_before_anything_is_learned(world, key, value):
    with pytest.raises(ConfigError, match=rf"METHOD\.MBPA\.{key}: expected"):
        Mbpa(settings(world, **{key: value}))


def test_a_cosine_classifier_is_refused_before_anything_is_learned(world):
    world.cfg.METHODS = ("mbpa",)
    build_methods(world.cfg)
    world.cfg.MODEL.CLASSIFIER.HEAD = "cosine"
    with pytest.raises(ConfigError, match=r"mbpa takes .* a linear classifier.*MODEL\.CLASSIFIER\.HEAD is cosine"):
        build_methods(world.cfg)
