"""LUCIR: what its second task begins with, what may not move, and what the losses do not depend on."""

import copy

import pytest
import torch
from tiny import SECOND, World, tiny_config
from torch.nn.functional import normalize

from incdet.engine.learner import Learner, freeze_copy
from incdet.errors import ConfigError
from incdet.methods import build_methods
from incdet.methods.base import Method
from incdet.optim import build_optimizer

TEXTS = ("a", "b", "a", "c", "d", "a", "b", "c")
CLASSIFICATION = ("TASK", "classification", "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32)
COSINE = ("MODEL.CLASSIFIER.HEAD", "cosine")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config("fpn", *CLASSIFICATION, *COSINE), TEXTS)


def lucir(*overrides) -> Method:
    return build_methods(tiny_config("fpn", *CLASSIFICATION, *COSINE, "METHODS", ("lucir",), *overrides))[0]


def test_new_rows_are_imprinted_from_the_old_models_features(world):
    learner, _ = world.begin_second([lucir()])
    rows, old = learner.student.head.weight.detach(), world.first.head.weight.detach()
    assert torch.equal(rows[:2], old)
    images = world.context(SECOND).view.images
    features = torch.cat(world.context(SECOND).features(world.first, images, ""))
    labels = torch.tensor([image.labels[0] for image in images])
    for label in (2, 3):
        direction = normalize(normalize(features[labels == label], dim=1).mean(dim=0), dim=0)
        torch.testing.assert_close(rows[label], old.norm(dim=1).mean() * direction)


def test_beginning_again_imprints_the_same(world):
    """A task that is killed before its first checkpoint begins twice."""
    weights = [world.begin_second([lucir()])[0].student.head.weight.detach() for _ in range(2)]
    assert torch.equal(*weights)


def test_old_rows_keep_their_bits_under_momentum_and_decay_and_all_else_moves(world):
    learner, view = world.begin_second([lucir()])
    optimizer = build_optimizer(world.cfg.SOLVER, learner.student)
    for group in optimizer.param_groups:
        group.update(lr=0.1, weight_decay=0.1, momentum=0.9)
    head, before = learner.student.head, copy.deepcopy(learner.student.head)
    for iteration in range(3):
        optimizer.zero_grad()
        sum(learner(world.batch(view, iteration)).values()).backward()
        with learner.around_update():
            optimizer.step()
    assert torch.equal(head.weight[:2], before.weight[:2])
    assert (head.weight[2:] != before.weight[2:]).any(dim=1).all()
    assert head.scale != before.scale


def test_a_first_task_after_another_run_fixes_nothing(world):
    """The same object lives through all tasks of a run, and may live through two."""
    method = lucir()
    world.begin_second([method])
    learner, view = world.begin_first([method])
    assert learner(world.batch(view)).keys() == {"loss_cls"}
    rows = learner.student.head.weight
    before = rows.detach().clone()
    with learner.around_update(), torch.no_grad():
        rows.add_(1)
    assert torch.equal(rows, before + 1)


def test_at_first_nothing_is_forgotten_and_lengths_do_not_count(world):
    learner, view = world.begin_second([lucir()])
    batch = world.batch(view)
    with learner.student.evaluating():
        before = learner(batch)
        with torch.no_grad():
            learner.student.head.weight.mul_(torch.tensor([[3.0], [0.5], [2.0], [7.0]]))
        after = learner(batch)
    assert before.keys() == {"loss_cls", "loss_less_forget", "loss_margin_ranking"}
    assert before["loss_less_forget"].item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_less_forget_grows_with_the_root_of_old_over_new_classes(tmp_path):
    """Three old classes and one new: sqrt(3) times the weight, 1 - cosine being 2 where features turn round."""
    world = World(tmp_path, tiny_config("fpn", *CLASSIFICATION, *COSINE), TEXTS, split="3+1")
    task, student = world.stream[1], copy.deepcopy(world.first)
    student.expand_classes(1)
    student.box_features = lambda pooled: -pooled.mean(dim=(2, 3))
    learner = Learner(student, freeze_copy(world.first), [lucir("METHOD.LUCIR.LESS_FORGET", 2.0)], task)
    with student.evaluating():
        loss = learner(world.batch(world.context(task).view))["loss_less_forget"]
    assert loss.item() == pytest.approx(2 * 2.0 * 3**0.5, rel=1e-5)


def test_a_linear_head_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"Expected MODEL\.CLASSIFIER\.HEAD cosine, got linear"):
        lucir("MODEL.CLASSIFIER.HEAD", "linear")
