"""iCaRL's loss against numbers worked by hand."""

import math

import pytest
import torch

from incdet.losses.icarl import distilled_cross_entropy
from incdet.structures import IGNORED

ONE = torch.ones(1)


def loss(logits, label, weights=ONE, old=None) -> float:
    old = None if old is None else torch.tensor(old)
    return distilled_cross_entropy(torch.tensor(logits), torch.tensor(label), weights, old).item()


def test_every_class_has_a_sigmoid_of_its_own():
    """At logits 0 each of three classes costs log 2; log 3 is a probability of 3 / 4."""
    assert loss([[0.0, 0.0, 0.0]], [1]) == pytest.approx(3 * math.log(2))
    assert loss([[math.log(3), -math.log(3)]], [0]) == pytest.approx(-2 * math.log(3 / 4))
    assert loss([[math.log(3), -math.log(3)]], [1]) == pytest.approx(-2 * math.log(1 / 4))


def test_old_classes_follow_the_old_model_and_new_ones_the_labels():
    """The old model says 3 / 4 of the old class; the student 1 / 2 of both."""
    student = [[0.0, math.log(3)]]
    entropy = 3 / 4 * math.log(2) + 1 / 4 * math.log(2)
    assert loss(student, [1], old=[[math.log(3)]]) == pytest.approx(entropy - math.log(3 / 4))
    assert loss(student, [0], old=[[math.log(3)]]) == pytest.approx(entropy - math.log(1 / 4))


def test_the_old_models_own_logits_leave_the_old_classes_no_gradient():
    old = torch.randn(5, 3)
    logits = torch.cat([old, torch.randn(5, 2)], dim=1).requires_grad_(True)
    distilled_cross_entropy(logits, torch.tensor([3, 4, 0, 1, 3]), torch.ones(5), old).backward()
    assert logits.grad[:, :3].abs().max() < 1e-7
    assert logits.grad[:, 3:].abs().min() > 1e-4


def test_images_are_averaged_by_weight_and_unlabelled_ones_are_left_out():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [5.0, 5.0]])
    labels = torch.tensor([0, 0, IGNORED])
    first, second = 2 * math.log(2), -math.log(3 / 4) + math.log(2)
    found = distilled_cross_entropy(logits, labels, torch.tensor([1.0, 0.5, 1.0]), None)
    assert found.item() == pytest.approx((first + second / 2) / 2)
    assert distilled_cross_entropy(logits[2:], labels[2:], ONE, None).item() == 0
