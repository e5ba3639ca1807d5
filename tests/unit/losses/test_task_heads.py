"""Distillation head by head: softened answers against numbers worked by hand, and which columns make a head."""

import math

import pytest
import torch
from torch.nn import functional as F

from incdet.losses.task_heads import head_distillation, head_pairs, sigmoid_distillation, task_logits


def test_softened_answers_are_compared_and_regions_averaged():
    # At T = 2 these logits are log 1 : 3 and log 1 : 1, so that the probabilities are (1/4, 3/4) and (1/2, 1/2).
    three, even = 2 * torch.tensor([1.0, 3.0]).log(), torch.zeros(2)
    student, teacher = torch.stack([even, three]), torch.stack([three, even])
    expected = (math.log(2) - 0.5 * math.log(1 / 4) - 0.5 * math.log(3 / 4)) / 2
    assert head_distillation(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


def test_it_is_the_papers_formula_of_recorded_probabilities():
    """p^(1/T) over its sum, for teacher and student; here the paper's T."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), 3 * torch.randn(5, 4)
    roots = [logits.softmax(dim=1) ** (1 / 2) for logits in (student, teacher)]
    q, p = (root / root.sum(dim=1, keepdim=True) for root in roots)
    expected = -(p * q.log()).sum(dim=1).mean()
    torch.testing.assert_close(head_distillation(student, teacher, 2.0), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_is_the_gap_over_the_temperature(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    head_distillation(student, teacher, temperature).backward()
    q, p = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
    torch.testing.assert_close(student.grad, (q - p).detach() / temperature / 3)


def test_equal_answers_cost_the_teachers_entropy_and_pull_nowhere():
    student = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    loss = head_distillation(student, student.detach())
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert student.grad.abs().max().item() < 1e-7


def test_a_common_shift_is_not_seen():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    shifted = head_distillation(student + torch.randn(5, 1), teacher, 2.0)
    torch.testing.assert_close(shifted, head_distillation(student, teacher, 2.0))


def test_no_regions_cost_nothing_but_still_have_gradients():
    student = torch.zeros(0, 3, requires_grad=True)
    loss = head_distillation(student, torch.zeros(0, 3), 2.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 3)


def test_sigmoids_are_compared_class_by_class():
    teacher = torch.tensor([[math.log(3), 0.0]])  # probabilities 3/4 and 1/2
    student = torch.tensor([[0.0, math.log(3)]])
    expected = (math.log(2) - 0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)) / 2
    assert sigmoid_distillation(student, teacher).item() == pytest.approx(expected, rel=1e-6)


COLUMNS = torch.arange(12.0).view(2, 6)


def test_the_background_belongs_to_every_task():
    assert task_logits(COLUMNS, range(2, 4), num_classes=5).tolist() == [[2, 3, 5], [8, 9, 11]]
    assert task_logits(COLUMNS, range(2, 4), num_classes=6).tolist() == [[2, 3], [8, 9]]


@pytest.mark.parametrize(("teacher_columns", "background"), [(3, False), (4, True)])
def test_a_pair_has_the_classes_of_one_head_and_the_background_where_the_teacher_has_one(teacher_columns, background):
    teacher = 100 + torch.arange(2.0 * teacher_columns).view(2, -1)
    pairs = head_pairs(COLUMNS, teacher, [range(1), range(1, 3)])
    heads = ([0, 5], [1, 2, 5]) if background else ([0], [1, 2])
    old_heads = ([0, 3], [1, 2, 3]) if background else ([0], [1, 2])
    assert len(pairs) == 2
    for (student, old), columns, old_columns in zip(pairs, heads, old_heads, strict=True):
        assert torch.equal(student, COLUMNS[:, columns])
        assert torch.equal(old, teacher[:, old_columns])


def test_one_head_of_all_classes_is_the_plain_cross_entropy_of_both():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 3)
    (pair,) = head_pairs(student, teacher, [range(3)])
    expected = F.cross_entropy(student[:, :3], teacher.softmax(dim=1))
    torch.testing.assert_close(head_distillation(*pair), expected)
