"""Attentive distillation, against numbers worked out by hand."""

import math

import pytest
import torch

from incdet.losses.attention import attentive_distillation, spatial_attention


def one_region(*channels: list[list[float]]) -> torch.Tensor:
    """One region (1, C, h, w) from its channels."""
    return torch.tensor([list(channels)], dtype=torch.float32)


# Mean squares of the four cells: log 1, log 1, log 2, log 4, so the softmax is 1/8, 1/8, 2/8, 4/8.
ROOTS = [[0.0, 0.0], [math.sqrt(2 * math.log(2)), math.sqrt(2 * math.log(4))]]
TEACHER = one_region(ROOTS, [[0.0, 0.0], [0.0, 0.0]])
ATTENTION = torch.tensor([[[0.5, 0.5], [1.0, 2.0]]])


def test_attention_is_the_softmax_of_mean_squares_times_the_cells():
    torch.testing.assert_close(spatial_attention(TEACHER), ATTENTION)


def test_equal_strength_everywhere_gives_one_everywhere():
    features = torch.ones(3, 2, 4, 5) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(spatial_attention(features), torch.ones(3, 4, 5))


def test_each_region_is_weighed_by_itself():
    features = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    attention = spatial_attention(features)
    torch.testing.assert_close(attention.sum(dim=(1, 2)), torch.full((4,), 10.0))
    torch.testing.assert_close(attention[2:3], spatial_attention(features[2:3]))


def test_distance_by_hand():
    """One changed value of eight: by 3 where the attention is 0.5, in the second channel."""
    student = TEACHER.clone()
    student[0, 1, 0, 1] = 3.0
    # The student's mean squares become 0, 4.5, log 2, log 4; its softmax is (1, e^4.5, 2, 4) / (7 + e^4.5).
    weights = [1.0, math.exp(4.5), 2.0, 4.0]
    theirs = [4 * w / sum(weights) for w in weights]
    gap = sum(abs(a - b) for a, b in zip(theirs, ATTENTION.flatten().tolist(), strict=True)) / 4
    distance = 0.5 * 9 / 8
    assert attentive_distillation(student, TEACHER, 0.0).item() == pytest.approx(distance)
    assert attentive_distillation(student, TEACHER, 5.0).item() == pytest.approx(distance + 5 * gap, rel=1e-5)


def test_the_same_change_costs_more_where_the_teacher_attends():
    costs = []
    for row, column in ((0, 0), (1, 0), (1, 1)):
        student = TEACHER.clone()
        student[0, 1, row, column] += 1.0
        costs.append(attentive_distillation(student, TEACHER, 0.0).item())
    assert costs == pytest.approx([0.5 / 8, 1.0 / 8, 2.0 / 8])


def test_equal_features_cost_nothing_and_gradients_reach_the_student_alone():
    student, teacher = TEACHER.clone().requires_grad_(), TEACHER.clone()
    assert attentive_distillation(student, teacher, 1.0).item() == 0.0
    attentive_distillation(student + 0.1, teacher, 1.0).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0


def test_no_regions_cost_nothing():
    student = torch.zeros(0, 2, 3, 3, requires_grad=True)
    loss = attentive_distillation(student, torch.zeros(0, 2, 3, 3), 1.0)
    loss.backward()
    assert loss.item() == 0.0


def test_half_precision_does_not_overflow():
    student = torch.full((1, 2, 2, 2), 300.0, dtype=torch.float16)
    assert torch.isfinite(attentive_distillation(student, -student, 1.0))
