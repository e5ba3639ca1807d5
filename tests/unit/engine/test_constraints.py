"""Several gradients per step: what a method that constrains the step is given, and what becomes of its answer."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from incdet.engine.learner import Learner
from incdet.methods.base import Method
from incdet.structures import Batch, RegionOutputs
from incdet.tasks import build_stream

_, SECOND = build_stream("1+1", ("a", "b"))
BATCH = Batch([torch.zeros(3, 4, 4)], None, ["image"])


class Linear(nn.Module):
    """A detector whose only loss is linear in its weights: the gradient is (1, -2, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Parameter(torch.tensor([4.0, 5.0]))
        self.frozen = nn.Parameter(torch.ones(7), requires_grad=False)
        self.single = nn.Parameter(torch.tensor([[6.0]]))
        self.idle = nn.Parameter(torch.ones(1))

    def image_pass(self, batch):
        return SimpleNamespace(image_sizes=[(8, 8)])

    def region_pass(self, images):
        return RegionOutputs(*(torch.zeros(1, 1) for _ in range(5)), torch.zeros(1, dtype=torch.long))

    def losses(self, images, regions, skip):
        return {"loss": self.pair @ torch.tensor([1.0, -2.0]) + 3 * self.single.sum()}


class Bounded(Method):
    """Two constraints, of which the second does not reach every parameter; the answer is made of all that is given."""

    def constraints(self, step):
        student = step.student.detector
        return {"first": student.pair.sum() + student.single.sum(), "second": 2 * student.pair[1]}

    def project(self, gradient, constraints):
        self.given = gradient, constraints
        return gradient + constraints[0] * 10 + constraints[1] * 100


def step(methods, average=lambda rows: rows, scale=1.0):
    learner = Learner(Linear(), None, methods, SECOND)
    losses = learner(BATCH)
    with learner.around_backward(average, scale):
        (scale * sum(losses.values())).backward()
    return learner, losses


def gradients(learner) -> list[float]:
    student = learner.student
    return [*student.pair.grad.tolist(), student.single.grad.item()]


def test_a_method_is_given_all_gradients_and_its_answer_is_applied():
    method = Bounded({})
    learner, losses = step([Method({}), method])
    gradient, constraints = method.given
    assert gradient.tolist() == [1.0, -2.0, 3.0, 0.0]
    assert constraints.tolist() == [[1.0, 1.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    assert gradients(learner) == [11.0, 208.0, 13.0]
    assert learner.student.frozen.grad is None
    assert losses.keys() == {"loss"}
    assert {name: value.item() for name, value in learner.constraints.items()} == {"first": 15.0, "second": 10.0}
    assert not any(value.requires_grad for value in learner.constraints.values()), "the graph would outlive the step"


def test_a_step_without_constraints_is_left_alone():
    def average(rows):
        raise AssertionError("nothing is to be averaged")

    learner, _ = step([Method({})], average)
    assert gradients(learner) == [1.0, -2.0, 3.0]
    assert learner.student.idle.grad is None
    assert learner.constraints == {}


def test_constraints_are_the_means_over_all_processes():
    method = Bounded({})
    step([method], average=lambda rows: rows / 2)
    gradient, constraints = method.given
    assert gradient.tolist() == [1.0, -2.0, 3.0, 0.0]  # the backward pass has averaged it already
    assert constraints.tolist() == [[0.5, 0.5, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]


def test_the_scale_of_mixed_precision_is_hidden_from_the_method_and_left_on_the_gradient():
    method = Bounded({})
    learner, _ = step([method], scale=1024.0)
    assert [rows.tolist() for rows in method.given] == [
        [1.0, -2.0, 3.0, 0.0],
        [[1.0, 1.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0]],
    ]
    assert gradients(learner) == [11.0 * 1024, 208.0 * 1024, 13.0 * 1024]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_gradients_that_overflow_are_not_projected_but_shown(value):
    """Mixed precision skips a step whose gradients are not finite, and lowers its scale."""

    class Overflowing(Bounded):
        def project(self, gradient, constraints):
            raise AssertionError("there is nothing to project")

    learner, _ = step([Overflowing({})], average=lambda rows: rows * value)
    assert all(gradient != gradient for gradient in gradients(learner))


def test_every_step_has_its_own_constraints():
    class Once(Bounded):
        done = False

        def constraints(self, step):
            found, self.done = {} if self.done else super().constraints(step), True
            return found

    learner, _ = step([Once({})])
    learner.student.zero_grad()
    losses = learner(BATCH)
    with learner.around_backward(lambda rows: rows):
        sum(losses.values()).backward()
    assert gradients(learner) == [1.0, -2.0, 3.0]
