"""The unbiased losses against numbers worked by hand (the background is the last column)."""

import math

import pytest
import torch
from torch.nn import functional as F

from incdet.losses.detection import region_losses, smooth_l1
from incdet.losses.unbiased import unbiased_classification, unbiased_distillation
from incdet.structures import IGNORED, RegionOutputs


def logs(*rows: list[float]) -> torch.Tensor:
    """Logits whose softmax is these probabilities; a constant per row is added, for a softmax does not see it."""
    return torch.tensor(rows).log() + torch.arange(1.0, len(rows) + 1)[:, None]


def classification(logits, labels, num_old, weights=None):
    weights = torch.ones(len(labels)) if weights is None else torch.tensor(weights)
    return unbiased_classification(logits, torch.tensor(labels), weights, num_old)


# ---------------------------------------------------------------------- classification


def test_a_background_region_may_be_an_old_object_and_a_labelled_one_is_what_it_is_called():
    logits = logs([0.3, 0.1, 0.4, 0.2], [0.1, 0.2, 0.6, 0.1], [0.5, 0.1, 0.2, 0.2])  # two old classes, one new
    # background: 0.3 + 0.1 + 0.2; the new class: 0.6; an old one, as replay labels it: 0.5
    expected = -(math.log(0.6) + math.log(0.6) + math.log(0.5)) / 3
    assert classification(logits, [3, 2, 0], num_old=2).item() == pytest.approx(expected)


def test_weights_scale_regions_and_ignored_ones_are_neither_paid_for_nor_counted():
    logits = logs([0.3, 0.1, 0.4, 0.2], [0.1, 0.2, 0.6, 0.1], [0.25, 0.25, 0.25, 0.25])
    loss = classification(logits, [3, 2, IGNORED], 2, weights=[1.0, 0.5, 7.0])
    assert loss.item() == pytest.approx(-(math.log(0.6) + 0.5 * math.log(0.6)) / 2)


def test_nothing_but_ignored_regions_costs_nothing_and_still_has_gradients():
    logits = torch.randn(2, 4, requires_grad=True)
    loss = classification(logits, [IGNORED, IGNORED], 2)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_without_old_classes_it_is_the_loss_that_it_replaces():
    torch.manual_seed(0)
    labels, weights = torch.tensor([0, 2, IGNORED, 3, 3, 1]), torch.rand(6)
    regions = RegionOutputs(
        torch.zeros(6, 1, 1, 1), torch.zeros(6, 1), torch.randn(6, 4), torch.zeros(6, 3, 4), torch.zeros(6, 4),
        torch.zeros(6), labels, torch.zeros(6, 4), weights,
    )  # fmt: skip
    stock = region_losses(regions, smooth_l1(1.0), skip=("loss_box_reg",))["loss_cls"]
    torch.testing.assert_close(unbiased_classification(regions.logits, labels, weights, 0), stock)
    assert unbiased_classification(regions.logits, labels, weights, 2) < stock


def test_a_background_region_does_not_push_old_classes_down():
    logits = torch.zeros(1, 4, requires_grad=True)  # p = 1/4 each; p(not new) = 3/4
    classification(logits, [3], num_old=2).backward()
    # d/dz of -log(3/4) is p - p / (3/4) for the old ones and the background, and p for the new one
    assert logits.grad[0].tolist() == pytest.approx([-1 / 12, -1 / 12, 1 / 4, -1 / 12])


# ---------------------------------------------------------------------- distillation


def test_the_teachers_background_is_the_students_background_or_a_new_class():
    student = logs([0.5, 0.1, 0.3, 0.1], [0.2, 0.2, 0.2, 0.4])  # two old classes, one new
    teacher = logs([0.6, 0.2, 0.2], [0.1, 0.1, 0.8])
    first = 0.6 * math.log(0.5) + 0.2 * math.log(0.1) + 0.2 * math.log(0.4)
    second = 0.1 * math.log(0.2) + 0.1 * math.log(0.2) + 0.8 * math.log(0.6)
    assert unbiased_distillation(student, teacher).item() == pytest.approx(-(first + second) / 2 / 3)


def test_without_new_classes_it_is_the_cross_entropy_averaged_over_the_columns():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    expected = F.cross_entropy(student, teacher.softmax(dim=1)) / 3
    torch.testing.assert_close(unbiased_distillation(student, teacher), expected)


def test_what_the_teacher_called_background_may_become_a_new_class_at_no_cost():
    teacher = logs([0.2, 0.8])
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)) / 2
    for new in (0.01, 0.4, 0.79):
        student = logs([0.2, new, 0.8 - new]).requires_grad_()
        loss = unbiased_distillation(student, teacher)
        loss.backward()
        assert loss.item() == pytest.approx(entropy)
        assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_no_regions_cost_nothing_but_still_have_gradients():
    student = torch.zeros(0, 4, requires_grad=True)
    loss = unbiased_distillation(student, torch.zeros(0, 3))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 4)
