"""Distillation through frozen heads, by hand."""

import math

import pytest
import torch

from incdet.losses.bridge import bridged_targets
from incdet.losses.frozen_head import decoded_boxes, decoded_classification, mixed_log_probabilities


def test_the_divergence_by_hand():
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # p = 3/4, 1/4 and 1/2, 1/2
    decoded = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 4  # two regions, two columns
    assert decoded_classification(decoded, teacher).item() == pytest.approx(expected)


def test_it_is_zero_where_both_read_the_same_and_positive_elsewhere():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert decoded_classification(logits + 3.0, logits).item() == pytest.approx(0, abs=1e-6)
    assert decoded_classification(logits.flip(1), logits) > 0.05


def test_its_gradient_is_the_difference_of_the_probabilities():
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    decoded = torch.tensor([[0.0, 1.0, 0.5]], requires_grad=True)
    decoded_classification(decoded, teacher).backward()
    torch.testing.assert_close(decoded.grad, (decoded.detach().softmax(1) - teacher.softmax(1)) / 3)


def test_boxes_by_hand():
    decoded = torch.tensor([[[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]]])
    assert decoded_boxes(decoded, torch.zeros(1, 2, 4)).item() == pytest.approx((1 + 4 + 9) / 8)


@pytest.mark.parametrize(("loss", "shape"), [(decoded_classification, (0, 3)), (decoded_boxes, (0, 2, 4))])
def test_no_regions_cost_nothing(loss, shape):
    value = loss(torch.zeros(shape, requires_grad=True), torch.zeros(shape))
    value.backward()
    assert value.item() == 0


def test_two_teachers_are_mixed_by_hand():
    old = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()  # one old class, background
    interim = torch.tensor([[0.7, 0.3], [0.7, 0.3]]).log()  # one new class, background
    mixed = mixed_log_probabilities(old, interim, torch.tensor([False, True])).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.6, 0.28, 0.12], [0.18, 0.7, 0.12]]))


def test_the_mixture_is_bpfs_and_finite_where_that_is_zero():
    generator = torch.Generator().manual_seed(0)
    old, interim = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
    is_new = torch.arange(8) % 2 == 0
    torch.testing.assert_close(
        mixed_log_probabilities(old, interim, is_new).exp(), bridged_targets(old, interim, is_new)
    )
    assert bridged_targets(200 * old, interim, is_new).eq(0).any()
    assert mixed_log_probabilities(200 * old, interim, is_new).isfinite().all()
