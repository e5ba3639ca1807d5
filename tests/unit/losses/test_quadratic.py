"""The quadratic penalty against numbers worked by hand."""

import pytest
import torch

from incdet.losses.quadratic import quadratic_penalty


def test_each_distance_is_squared_and_weighted():
    parameters = {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor([[3.0]], requires_grad=True)}
    anchors = {"a": torch.tensor([0.0, 2.5]), "b": torch.tensor([[1.0]])}
    importance = {"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([[0.5]])}
    loss = quadratic_penalty(parameters, anchors, importance)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 1 + 4 * 0.25 + 0.5 * 4)
    assert parameters["a"].grad.tolist() == pytest.approx([2 * 2 * 1, 2 * 4 * -0.5])  # 2 importance (theta - anchor)
    assert parameters["b"].grad.tolist() == [[2 * 0.5 * 2]]


def test_what_is_not_important_is_free():
    free = torch.tensor([9.0], requires_grad=True)
    held = torch.tensor([1.0], requires_grad=True)
    quadratic_penalty({"free": free, "held": held}, {"held": torch.zeros(1)}, {"held": torch.ones(1)}).backward()
    assert free.grad is None
    assert held.grad.item() == 2.0
