"""A second teacher that learns a task's new classes alone."""

import copy

import numpy as np
import pytest
import torch
from tiny import SECOND, World, tiny_config

from incdet import interim
from incdet.engine import context as engine_context
from incdet.interim import new_classes_only, train_interim


@pytest.fixture
def world(tmp_path):
    cfg = tiny_config()
    cfg.merge_from_list(["SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0])
    return World(tmp_path, cfg)


@pytest.fixture
def context(world):
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    return world.context(SECOND, student)


def test_the_view_teaches_the_new_classes_from_label_0(context):
    view = new_classes_only(context.view)
    assert (view.task.old, view.task.new, view.task.index) == ((), ("c", "d"), 2)
    assert {label for image in view.images for label in image.labels.tolist()} == {0, 1}
    for image, before in zip(view.images, context.view.images, strict=True):
        np.testing.assert_array_equal(image.labels, before.labels - 2)
        np.testing.assert_array_equal(image.boxes, before.boxes)
        assert image.labelled == {0, 1}
        assert before.labelled == {2, 3}


def test_it_is_trained_frozen_and_leaves_the_student_alone(context):
    before = copy.deepcopy(context.student.state_dict())
    teacher = train_interim(context.student, context.view, context.train)
    assert teacher.num_classes == 2
    assert not teacher.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in context.student.state_dict().items())
    assert any(parameter.requires_grad for parameter in context.student.parameters())
    trained = [name for name, value in teacher.state_dict().items() if value.shape == before[name].shape]
    assert any(not torch.equal(teacher.state_dict()[name], before[name]) for name in trained)


def test_a_task_that_begins_again_finds_it(context, monkeypatch):
    first = train_interim(context.student, context.view, context.train)
    assert (context.task_folder / interim.FOLDER / "model.safetensors").exists()
    monkeypatch.setattr(engine_context, "train_task", None)
    second = train_interim(context.student, context.view, context.train)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize(("iterations", "solver"), [(None, {}), (3, {"MAX_ITER": 3})])
def test_iterations_are_the_tasks_own_or_given(context, iterations, solver):
    asked = []
    train_interim(context.student, context.view, lambda *arguments: asked.append(arguments), iterations)
    ((_, view, name, values, methods),) = asked
    assert (view.task.new, name, values, methods) == (("c", "d"), "interim", solver, ())
