"""Distillation through a frozen head, by hand."""

import math

import pytest
import torch

from incdet.losses.frozen_head import decoded_classification


def test_the_divergence_by_hand():
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # p = 3/4, 1/4 and 1/2, 1/2
    decoded = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert decoded_classification(decoded, teacher).item() == pytest.approx(expected)


def test_it_is_zero_where_both_read_the_same_and_positive_elsewhere():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert decoded_classification(logits + 3.0, logits).item() == pytest.approx(0, abs=1e-6)
    assert decoded_classification(logits.flip(1), logits) > 0.1


def test_its_gradient_is_the_difference_of_the_probabilities():
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    decoded = torch.tensor([[0.0, 1.0, 0.5]], requires_grad=True)
    decoded_classification(decoded, teacher).backward()
    torch.testing.assert_close(decoded.grad, decoded.detach().softmax(1) - teacher.softmax(1))


def test_no_regions_cost_nothing():
    decoded = torch.zeros(0, 3, requires_grad=True)
    loss = decoded_classification(decoded, torch.zeros(0, 3))
    loss.backward()
    assert loss.item() == 0
