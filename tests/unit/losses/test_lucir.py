"""LUCIR's losses against numbers worked by hand, and what they do not depend on."""

import pytest
import torch

from incdet.losses.lucir import less_forget, less_forget_weight, margin_ranking
from incdet.structures import IGNORED


def test_the_weight_of_less_forget_grows_with_the_old_classes():
    """CIFAR-100: fifty classes first, then five phases of ten; ten of five; twenty-five of two."""
    five = [less_forget_weight(5.0, old, 10) for old in range(50, 100, 10)]
    assert five == pytest.approx([11.18, 12.25, 13.23, 14.14, 15.00], abs=0.005)
    ten = [less_forget_weight(5.0, old, 5) for old in range(50, 100, 5)]
    assert [ten[0], ten[-1]] == pytest.approx([15.81, 21.79], abs=0.005)
    assert [less_forget_weight(5.0, 50, 2), less_forget_weight(5.0, 98, 2)] == [25.0, 35.0]
    assert less_forget_weight(5.0, 7, 7) == 5.0


def test_less_forget_is_one_minus_the_cosine():
    student = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, -1.0]])
    teacher = torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert less_forget(student, teacher).item() == pytest.approx((0 + 1 + (1 - 0.5**0.5) + 2) / 4)
    assert less_forget(student[:0], teacher[:0]).item() == 0


def test_less_forget_does_not_see_lengths():
    student, teacher = torch.randn(2, 6, 5)
    torch.testing.assert_close(less_forget(7 * student, 0.1 * teacher), less_forget(student, teacher))


COSINES = torch.tensor(
    [
        [0.9, 0.0, 0.3, 0.5, -0.2],  # class 0 of two old ones: 0.4 and 0.6 below, so 0.1 and 0 are missing from 0.5
        [0.8, 0.2, 0.1, 0.6, 0.4],  # class 1: 0.9 and 0.7 are missing; class 0 is old, and no rival
        [0.0, 0.0, 0.9, 0.8, 0.7],  # new
    ]
)


def test_old_objects_keep_their_distance_from_the_new_classes_that_are_nearest():
    found = margin_ranking(COSINES, torch.tensor([0, 1, 2]), num_old=2, hardest=2, margin=0.5)
    assert found.item() == pytest.approx((0.1 + 0 + 0.9 + 0.7) / 4)
    found = margin_ranking(COSINES, torch.tensor([0, 1, 2]), num_old=2, hardest=1, margin=0.5)
    assert found.item() == pytest.approx((0.1 + 0.9) / 2)


def test_with_fewer_new_classes_than_rivals_all_take_part():
    found = margin_ranking(COSINES[:, :3], torch.tensor([0, 1, 2]), num_old=2, hardest=2, margin=0.5)
    assert found.item() == pytest.approx((0 + 0.4) / 2)


def test_nothing_is_asked_where_the_margin_is_kept():
    cosines = torch.tensor([[0.75, 0.0, 0.25, -0.5]], requires_grad=True)
    loss = margin_ranking(cosines, torch.tensor([0]), num_old=2, hardest=2, margin=0.5)
    loss.backward()
    assert loss.item() == 0
    assert not cosines.grad.any()


@pytest.mark.parametrize("labels", [[2, 3, 4], [IGNORED, IGNORED, 2]])
def test_without_old_objects_it_is_a_zero_that_can_be_trained_on(labels):
    cosines = COSINES.clone().requires_grad_(True)
    loss = margin_ranking(cosines, torch.tensor(labels), num_old=2, hardest=2, margin=0.5)
    loss.backward()
    assert loss.item() == 0
    assert not cosines.grad.any()
