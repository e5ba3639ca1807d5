"""Schedules by hand, and which parameter gets which decay and rate."""

import math

import pytest
import torch
from torch import nn

from incdet.config import get_cfg
from incdet.errors import ConfigError
from incdet.optim import build_optimizer, learning_rate, set_learning_rate


def solver(**changes):
    node = get_cfg().SOLVER
    node.BASE_LR, node.MAX_ITER, node.STEPS, node.WARMUP_ITERS = 0.4, 100, (60, 80), 10
    for key, value in changes.items():
        node[key] = value
    return node


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, 0.4 * 0.1),  # the warm-up starts at its factor
        (5, 0.4 * (0.1 * 0.5 + 0.5)),  # half of the way
        (9, 0.4 * (0.1 * 0.1 + 0.9)),
        (10, 0.4),
        (59, 0.4),
        (60, 0.04),  # a step counts from its own iteration on
        (79, 0.04),
        (80, 0.004),
        (99, 0.004),
    ],
)
def test_steps_after_a_linear_warm_up(iteration, expected):
    assert learning_rate(solver(WARMUP_FACTOR=0.1), iteration) == pytest.approx(expected)


def test_a_step_inside_the_warm_up_multiplies_it():
    assert learning_rate(solver(WARMUP_FACTOR=0.1, STEPS=(5,)), 5) == pytest.approx(0.4 * 0.55 * 0.1)


def test_without_warm_up_the_first_rate_is_the_full_one():
    assert learning_rate(solver(WARMUP_ITERS=0), 0) == pytest.approx(0.4)


@pytest.mark.parametrize(("iteration", "share"), [(10, (1 + math.cos(math.pi / 10)) / 2), (50, 0.5), (100, 0.0)])
def test_the_cosine_goes_from_the_full_rate_to_nothing(iteration, share):
    rate = learning_rate(solver(LR_SCHEDULER_NAME="WarmupCosineLR"), iteration)
    assert rate == pytest.approx(0.4 * share, abs=1e-12)


def test_an_unknown_schedule_or_optimiser_names_its_key():
    with pytest.raises(ConfigError, match=r"SOLVER\.LR_SCHEDULER_NAME.*WarmupCosineLR.*'Linear'"):
        learning_rate(solver(LR_SCHEDULER_NAME="Linear"), 0)
    with pytest.raises(ConfigError, match=r"SOLVER\.OPTIMIZER: expected SGD or AdamW, got 'Adam'"):
        build_optimizer(solver(OPTIMIZER="Adam"), nn.Linear(1, 1))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
        self.backbone[2].requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


def test_every_open_parameter_is_in_one_group_with_its_own_decay_and_rate():
    model = Model()
    node = solver(BACKBONE_MULTIPLIER=0.1, WEIGHT_DECAY=0.5, WEIGHT_DECAY_NORM=0.25)
    optimizer = build_optimizer(node, model)
    found = {id(p): (g["weight_decay"], g["lr_factor"]) for g in optimizer.param_groups for p in g["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found) == 8
    named = {name: found.get(id(p)) for name, p in model.named_parameters()}
    assert named == {
        "backbone.0.weight": (0.5, 0.1),
        "backbone.0.bias": (0.5, 0.1),
        "backbone.1.weight": (0.25, 0.1),
        "backbone.1.bias": (0.25, 0.1),
        "backbone.2.weight": None,
        "backbone.2.bias": None,
        "head.0.weight": (0.5, 1.0),
        "head.0.bias": (0.5, 1.0),
        "head.1.weight": (0.25, 1.0),
        "head.1.bias": (0.25, 1.0),
    }


def test_a_rate_reaches_each_group_times_its_factor():
    optimizer = build_optimizer(solver(BACKBONE_MULTIPLIER=0.1), Model())
    set_learning_rate(optimizer, 0.02)
    assert {(group["lr_factor"], group["lr"]) for group in optimizer.param_groups} == {(0.1, 0.002), (1.0, 0.02)}


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_the_optimiser_steps(name, kind):
    model = Model()
    optimizer = build_optimizer(solver(OPTIMIZER=name), model)
    assert type(optimizer) is kind
    before = model.head[0].weight.detach().clone()
    frozen = model.backbone[2].weight.detach().clone()
    model.head(model.backbone(torch.randn(3, 1, 1, 1)).flatten(1)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.head[0].weight, before)
    assert torch.equal(model.backbone[2].weight, frozen)
