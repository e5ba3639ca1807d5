"""Stages of training that methods ask for."""

import copy

import torch
from tiny import SECOND, World, tiny_config

from incdet.backends import read_model
from incdet.engine import context as engine_context

SOLVER = {"MAX_ITER": 2, "BASE_LR": 0.01, "WARMUP_ITERS": 0}


def same(one, other) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_stage_trains_once_and_is_found_finished_afterwards(tmp_path, monkeypatch):
    world = World(tmp_path, tiny_config())
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    untrained = copy.deepcopy(student)
    context = world.context(SECOND, student)
    context.train(student, context.view, "extra", SOLVER, ())
    assert not same(student, untrained)
    folder = context.task_folder / "extra"
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1
    assert not (folder / "state.pt").exists()
    assert all(
        torch.equal(value, student.state_dict()[name])
        for name, value in read_model(folder / "model.safetensors")[0].items()
    )

    monkeypatch.setattr(engine_context, "train_task", None)
    context.train(untrained, context.view, "extra", SOLVER, ())
    assert same(student, untrained)


def test_one_process_averages_to_what_it_has(tmp_path):
    context = World(tmp_path, tiny_config()).context()
    assert context.average(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
