"""Distillation losses against numbers worked by hand, and what each must not punish."""

import pytest
import torch

from incdet.losses.distillation import (
    ilod_boxes,
    ilod_classification,
    one_sided_anchor_boxes,
    one_sided_features,
    one_sided_objectness,
    one_sided_proposals,
    student_old_deltas,
    student_old_logits,
)
from incdet.structures import ImageOutputs

PAIRWISE = {
    "ilod_classification": (ilod_classification, (3, 4)),
    "ilod_boxes": (ilod_boxes, (3, 2, 4)),
    "one_sided_features": (one_sided_features, (2, 3, 4, 5)),
    "one_sided_objectness": (one_sided_objectness, (2, 6)),
}


@pytest.fixture(params=PAIRWISE.values(), ids=PAIRWISE.keys())
def loss_and_shape(request):
    torch.manual_seed(0)
    return request.param


def test_a_student_equal_to_its_teacher_costs_nothing(loss_and_shape):
    loss, shape = loss_and_shape
    values = torch.randn(shape)
    assert loss(values, values.clone()).item() == 0
    assert loss(values, torch.randn(shape)).item() > 0


def test_gradients_pull_the_student_towards_the_teacher(loss_and_shape):
    loss, shape = loss_and_shape
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    before = loss(student, teacher)
    before.backward()
    assert torch.isfinite(student.grad).all()
    assert loss(student.detach() - 0.01 * student.grad, teacher).item() < before.item()


def test_the_students_old_columns_are_its_first_and_its_last():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0]])
    assert student_old_logits(logits, 2).tolist() == [[1, 2, 9]]
    assert student_old_logits(logits, 4).tolist() == logits.tolist()


def test_the_students_old_boxes_are_its_first_and_one_for_all_classes_is_anyones():
    deltas = torch.randn(2, 3, 4)
    assert torch.equal(student_old_deltas(deltas, 2), deltas[:, :2])
    assert torch.equal(student_old_deltas(deltas[:, :1], 2), deltas[:, :1])


def test_classification_compares_logits_without_their_mean():
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])  # minus mean: -1 0 1 and -2 -2 4
    teacher = torch.tensor([[2.0, 2.0, 2.0], [0.0, 3.0, 3.0]])  # minus mean: 0 0 0 and -2 1 1
    assert ilod_classification(student, teacher).item() == pytest.approx((1 + 0 + 1 + 0 + 9 + 9) / 6)


def test_classification_ignores_a_shift_of_all_logits_of_a_region():
    teacher = torch.randn(4, 3)
    shifted = teacher + torch.tensor([[5.0], [-3.0], [0.0], [100.0]])
    assert ilod_classification(shifted, teacher).item() == pytest.approx(0, abs=1e-9)


def test_boxes_sum_the_coordinates_and_average_regions_and_classes():
    teacher = torch.zeros(2, 2, 4)
    student = torch.zeros(2, 2, 4)
    student[0, 0] = torch.tensor([1.0, 2.0, 0.0, 0.0])  # 5
    student[1, 1] = torch.tensor([0.0, 0.0, 0.0, -3.0])  # 9
    assert ilod_boxes(student, teacher).item() == pytest.approx((5 + 9) / 4)
    assert ilod_boxes(student[:, :1], teacher[:, :1]).item() == pytest.approx(5 / 2)


@pytest.mark.parametrize(("loss", "shape"), [(ilod_classification, (0, 3)), (ilod_boxes, (0, 2, 4))])
def test_no_regions_cost_nothing_but_still_have_gradients(loss, shape):
    student = torch.zeros(shape, requires_grad=True)
    value = loss(student, torch.zeros(shape))
    value.backward()
    assert value.item() == 0
    assert student.grad.shape == shape


def test_features_count_only_where_the_teacher_is_higher():
    teacher = torch.tensor([0.0, 2.0, 4.0, 2.0]).view(1, 1, 2, 2)  # minus mean: -2 0 2 0
    student = torch.tensor([3.0, 1.0, 1.0, 3.0]).view(1, 1, 2, 2)  # minus mean: 1 -1 -1 1
    assert one_sided_features(student, teacher).item() == pytest.approx((0 + 1 + 3 + 0) / 4)


def test_features_ignore_a_brighter_map():
    teacher = torch.randn(2, 3, 4, 5)
    assert one_sided_features(teacher + 7, teacher).item() == pytest.approx(0, abs=1e-6)


def test_objectness_counts_only_what_fell():
    teacher = torch.tensor([[2.0, 0.0], [1.0, -1.0]])
    student = torch.tensor([[0.0, 5.0], [1.0, -1.5]])
    assert one_sided_objectness(student, teacher).item() == pytest.approx((4 + 0 + 0 + 0.25) / 4)


def test_an_anchor_that_rose_costs_nothing_and_is_not_pulled_back():
    teacher = torch.randn(2, 6)
    student = (teacher + torch.rand(2, 6)).requires_grad_()
    loss = one_sided_objectness(student, teacher)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_anchor_boxes_count_where_the_teacher_is_surer_by_the_margin():
    teacher, student = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    student[0, 0] = 2.0
    teacher_objectness = torch.tensor([[1.0, 1.0, 1.0]])
    student_objectness = torch.tensor([[0.5, 0.95, 3.0]])  # fell by 0.5, by less than the margin, rose
    loss = one_sided_anchor_boxes(student, teacher, student_objectness, teacher_objectness, margin=0.1)
    assert loss.item() == pytest.approx(4 * 4 / 3)
    all_fell = one_sided_anchor_boxes(student, teacher, teacher_objectness - 1, teacher_objectness, margin=0.1)
    assert all_fell.item() == pytest.approx((16 + 4 + 4) / 3)


def test_anchor_boxes_teach_deltas_and_leave_objectness_to_its_own_loss():
    student, objectness = torch.ones(1, 2, 4, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    one_sided_anchor_boxes(student, torch.zeros(1, 2, 4), objectness, torch.tensor([[1.0, -1.0]]), 0.1).backward()
    assert objectness.grad is None
    assert student.grad[0, 0].tolist() == [1, 1, 1, 1]
    assert not student.grad[0, 1].any()


def anchors_of_one_image(objectness: list[float], delta: float) -> ImageOutputs:
    count = len(objectness)
    return ImageOutputs(
        images=None,
        frozen_features=None,
        features={},
        objectness=torch.tensor([objectness]),
        anchor_deltas=torch.full((1, count, 4), delta),
        anchors=[torch.zeros(count, 4)],
        propose=list,
        image_sizes=[(8, 8)],
    )


def test_proposals_are_objectness_and_boxes_together():
    student, teacher = anchors_of_one_image([0.0, 1.95, 5.0], 1.0), anchors_of_one_image([2.0, 2.0, 2.0], 0.0)
    loss = one_sided_proposals(student, teacher, margin=0.1)  # the second fell by less than the margin, the third rose
    assert loss.item() == pytest.approx((4 + 0.05**2 + 0) / 3 + (4 + 0 + 0) / 3)
