"""iOD's distillation terms against numbers worked by hand."""

import math

import pytest
import torch

from incdet.losses.knowledge import box_distance, feature_distance, softened_divergence


def test_the_divergence_sums_its_positive_terms_and_averages_regions():
    # At T = 2 these logits are log 1 : 3 and log 1 : 1, so p_T = (1/4, 3/4) and p_S = (1/2, 1/2).
    teacher = 2 * torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log()
    student = 2 * torch.tensor([[1.0, 1.0], [1.0, 1.0]]).log()
    # The first term, 1/4 log(1/2), is negative and left out; the second region agrees.
    expected = 2**2 * 0.75 * math.log(1.5) / 2
    assert softened_divergence(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_divergence_knows_no_common_shift():
    torch.manual_seed(0)
    teacher = torch.randn(5, 3)
    assert softened_divergence(teacher + torch.randn(5, 1), teacher, 6.0).item() == pytest.approx(0, abs=1e-5)


def test_the_divergence_pulls_towards_the_teacher():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    before = softened_divergence(student, teacher, 6.0)
    before.backward()
    assert softened_divergence(student.detach() - 0.1 * student.grad, teacher, 6.0) < before


def test_boxes_average_every_coordinate():
    teacher, student = torch.zeros(2, 2, 4), torch.zeros(2, 2, 4)
    student[0, 1, 2], student[1, 0, 0] = 2.0, -4.0
    assert box_distance(student, teacher).item() == pytest.approx((4 + 16) / 16)
    assert box_distance(student[:, :1], teacher[:, :1]).item() == pytest.approx(16 / 8)


def test_levels_count_the_same_whatever_their_size():
    teacher = {"fine": torch.zeros(1, 1, 2, 2), "coarse": torch.zeros(1, 1, 1, 1)}
    student = {"fine": torch.full((1, 1, 2, 2), 1.0), "coarse": torch.full((1, 1, 1, 1), 3.0)}
    assert feature_distance(student, teacher).item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize(
    ("loss", "shape"), [(lambda s, t: softened_divergence(s, t, 6.0), (0, 3)), (box_distance, (0, 2, 4))]
)
def test_no_regions_cost_nothing_but_still_have_gradients(loss, shape):
    student = torch.zeros(shape, requires_grad=True)
    value = loss(student, torch.zeros(shape))
    value.backward()
    assert value.item() == 0
    assert student.grad.shape == shape
