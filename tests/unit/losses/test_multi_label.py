"""Binary cross-entropy over what is known."""

import math

import pytest
import torch

from incdet.losses.multi_label import multi_label_loss

LOGITS = torch.tensor([[0.0, math.log(3.0)], [0.0, -math.log(3.0)]])  # probabilities 1/2, 3/4; 1/2, 1/4


def test_hand_worked():
    sets = torch.tensor([[1, 1], [0, 1]])
    expected = (math.log(2) + math.log(4 / 3) + math.log(2) + math.log(4)) / 4
    assert multi_label_loss(LOGITS, sets).item() == pytest.approx(expected)


def test_unknown_places_cost_nothing_are_not_counted_and_have_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = multi_label_loss(logits, torch.tensor([[1, -1], [-1, 1]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    loss.backward()
    assert logits.grad[0, 1] == logits.grad[1, 0] == 0
    assert multi_label_loss(LOGITS, torch.full((2, 2), -1)).item() == 0


def test_a_probability_is_a_target():
    known = multi_label_loss(LOGITS[:, :1], torch.tensor([[0.25], [-1.0]]))
    assert known.item() == pytest.approx(math.log(2))


def test_an_image_counts_by_its_weight():
    sets = torch.tensor([[1, 1], [0, 1]])
    loss = multi_label_loss(LOGITS, sets, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 4)
