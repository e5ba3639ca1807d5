from dataclasses import replace

import pytest
import torch
from lightning_fabric.plugins import Precision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from incdet.engine.checkpoint import TaskState
from incdet.errors import CheckpointError
from incdet.methods.base import Method


def state(seed: int, averaged: bool = True) -> TaskState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    result = TaskState(model, optimizer, AveragedModel(model) if averaged else None, Precision())
    for _ in range(3):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        if result.average is not None:
            result.average.update_parameters(model)
    return result


def test_absent_state_is_the_beginning(tmp_path):
    assert state(0).restore(tmp_path / "state.pt") == (0, 0.0)


def test_state_comes_back_to_the_bit(tmp_path):
    before, after = state(0), state(1)
    before.save(tmp_path / "state.pt", iteration=7, seconds=1.5)
    assert after.restore(tmp_path / "state.pt") == (7, 1.5)
    for mine, theirs in ((before.student, after.student), (before.average, after.average)):
        for (name, value), other in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(value, other), name
    momenta = [[s["momentum_buffer"] for s in one.optimizer.state.values()] for one in (before, after)]
    assert all(torch.equal(*pair) for pair in zip(*momenta, strict=True))
    assert after.average.n_averaged == 3


def test_state_without_the_average_that_is_asked_for(tmp_path):
    state(0, averaged=False).save(tmp_path / "state.pt", 7, 1.5)
    with pytest.raises(CheckpointError, match=r"KeyError: 'average'.*Delete it"):
        state(0).restore(tmp_path / "state.pt")


def test_truncated_state(tmp_path):
    path = tmp_path / "state.pt"
    state(0).save(path, 7, 1.5)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be used to resume"):
        state(0).restore(path)


class Counter(Method):
    """Counts."""

    count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_what_a_method_carries_comes_back(tmp_path):
    one, other = state(0), state(1)
    counters = Counter(None), Counter(None)
    counters[0].count = 5
    replace(one, methods=[counters[0]]).save(tmp_path / "state.pt", 7, 1.5)
    replace(other, methods=[counters[1]]).restore(tmp_path / "state.pt")
    assert counters[1].count == 5
