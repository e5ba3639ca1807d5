"""EWC: the importance is the Fisher information of the model's own distribution, and half of it is the price."""

import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config

from incdet.errors import CheckpointError
from incdet.importance import load_importance, measure
from incdet.methods.ewc import FILE, Ewc, log_likelihood_of_draws

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


def method(world: World, **changes) -> Ewc:
    node = world.cfg.METHOD.EWC.clone()
    node.update(changes)
    return Ewc(node)


def fisher_of_regression(weight: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """What is measured of a logistic regression with logits (0, w x)."""
    parameter = torch.nn.Parameter(weight)

    def score(x):
        return log_likelihood_of_draws(torch.stack([x.new_zeros(()), parameter @ x])[None])

    return measure({"w": parameter}, images, score, torch.square, lambda tensor: tensor)["w"]


def test_at_even_odds_the_fisher_of_a_logistic_regression_needs_no_luck():
    images = torch.tensor([[1.0, 2.0], [3.0, 0.0]])  # p (1 - p) x^2 = x^2 / 4, whichever label is drawn
    assert fisher_of_regression(torch.zeros(2), images).tolist() == pytest.approx([(1 + 9) / 8, 4 / 8])


def test_the_fisher_of_a_logistic_regression_is_the_analytic_one():
    torch.manual_seed(0)
    weight, images = torch.tensor([1.0, -0.5]), torch.randn(3000, 2)
    p = (images @ weight).sigmoid()
    analytic = ((p * (1 - p))[:, None] * images.square()).mean(dim=0)
    found = fisher_of_regression(weight, images)
    assert torch.allclose(found, analytic, rtol=0.08)
    confident = fisher_of_regression(10 * weight, images)  # labels come from the model, so what is sure has none
    assert (confident < found / 2).all()


@pytest.mark.parametrize("regions", [1, 16])
def test_many_regions_of_an_image_weigh_as_one(regions):
    torch.manual_seed(0)
    logits = torch.nn.Parameter(torch.tensor([0.3, -0.4, 0.1]))

    def score(_):
        return log_likelihood_of_draws(logits.expand(regions, 3))

    found = measure({"logits": logits}, range(3000), score, torch.square, lambda tensor: tensor)["logits"]
    p = logits.detach().softmax(0)
    assert torch.allclose(found, p * (1 - p), rtol=0.1)


def test_half_the_fisher_is_paid_for_the_squared_distance(tmp_path):
    world = world_of(tmp_path)
    ewc = method(world, WEIGHT=10.0)
    learner, view = world.begin_second([ewc])
    fisher = load_importance(tmp_path / "task_1" / FILE)["backbone.body.layer4.1.conv2.weight"]
    weight = learner.student.backbone.body["layer4"][1].conv2.weight
    with torch.no_grad():
        weight.add_(0.1)
    loss = learner(world.batch(view))["loss_ewc"]
    loss.backward()
    assert loss.item() == pytest.approx(10 / 2 * 0.01 * fisher.sum().item(), rel=1e-4)
    assert torch.allclose(weight.grad, 10 * fisher * 0.1, rtol=1e-4)


def test_labels_are_drawn_by_the_seed_and_among_the_classes_of_the_tasks_own_head(tmp_path):
    world = world_of(tmp_path, "MODEL.CLASSIFIER.MULTI_HEAD", True)
    found = []
    for _ in range(2):
        torch.rand(7)  # whatever was drawn before
        method(world).end_task(world.context(FIRST))
        found.append(load_importance(tmp_path / "task_1" / FILE))
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
    world.first.expand_classes(2)
    with torch.no_grad():
        world.first.head.weight[2:] = 0  # at even odds, and with nothing to say, the new head asks nothing of features
        world.first.head.bias[:2] = 100  # the old one would
    method(world).end_task(world.context(SECOND))
    both = load_importance(tmp_path / "task_2" / FILE)
    assert all(torch.equal(weight, both[name]) for name, weight in found[0].items())


def test_the_first_task_pays_nothing(tmp_path):
    world = world_of(tmp_path)
    learner, view = world.begin_first([method(world)])
    assert "loss_ewc" not in learner(world.batch(view))


def test_a_missing_file_says_how_to_come_by_it(tmp_path):
    world = world_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"ewc\.safetensors .*cannot be read.*--resume"):
        method(world).begin_task(world.context(SECOND))
