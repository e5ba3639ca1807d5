"""The elastic choice and its losses against numbers worked by hand."""

import math

import pytest
import torch

from incdet.losses.elastic import choose_elastic_boxes, confident_boxes, elastic_proposals, stands_out
from incdet.structures import ImageOutputs

APART = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(10)])  # ten boxes that do not touch


def test_what_stands_out_exceeds_the_mean_by_so_many_deviations():
    confidence = torch.tensor([0.1] * 9 + [0.6])  # mean 0.15; deviation sqrt((9 * 0.05^2 + 0.45^2) / 9) = 0.158
    limit = 0.45 / math.sqrt(0.225 / 9)  # 2.846 deviations
    assert stands_out(confidence, 2.0).nonzero().flatten().tolist() == [9]
    assert stands_out(confidence, limit - 0.01).any()
    assert not stands_out(confidence, limit + 0.01).any()


def test_the_threshold_belongs_to_the_image_and_not_to_a_scale():
    confidence = torch.tensor([0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.9, 0.1, 0.8])
    for scale, shift in ((1.0, 0.0), (0.01, 0.0), (0.1, 0.5)):
        assert stands_out(scale * confidence + shift, 1.0).nonzero().flatten().tolist() == [6, 8]


@pytest.mark.parametrize("confidence", [[], [0.9], [0.0, 0.0, 0.0, 0.0, 1.0], [0.5] * 8])
def test_nothing_stands_out_of_too_few_or_of_equals(confidence):
    assert not stands_out(torch.tensor(confidence), 2.0).any()
    assert len(stands_out(torch.tensor(confidence), 2.0)) == len(confidence)


def test_each_class_of_a_region_is_an_answer_of_its_own():
    confidence = torch.full((10, 2), 0.01)
    confidence[3, 1], confidence[7, 0], confidence[7, 1] = 0.9, 0.7, 0.8
    rows, classes = choose_elastic_boxes(APART, confidence, 1.0, 0.005)
    assert set(zip(rows.tolist(), classes.tolist(), strict=True)) == {(3, 1), (7, 0), (7, 1)}


def test_the_surest_of_overlapping_answers_of_a_class_stays():
    boxes = APART.clone()
    boxes[4] = boxes[3] + torch.tensor([9.0, 0, 9.0, 0])  # shares 1 of 19 columns with box 3: IoU 0.053
    confidence = torch.full((10, 2), 0.01)
    confidence[3, 0], confidence[4, 0], confidence[4, 1] = 0.8, 0.9, 0.7
    rows, classes = choose_elastic_boxes(boxes, confidence, 1.0, 0.005)
    assert set(zip(rows.tolist(), classes.tolist(), strict=True)) == {(4, 0), (4, 1)}
    rows, classes = choose_elastic_boxes(boxes, confidence, 1.0, 0.06)
    assert set(zip(rows.tolist(), classes.tolist(), strict=True)) == {(3, 0), (4, 0), (4, 1)}


def test_boxes_sum_the_coordinates_and_weigh_by_confidence_that_is_not_taught():
    student = torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 3]], requires_grad=True)
    confidence = torch.tensor([0.5, 0.1], requires_grad=True)
    loss = confident_boxes(student, torch.zeros(2, 4), confidence)
    loss.backward()
    assert loss.item() == pytest.approx((0.5 * 5 + 0.1 * 9) / 2)
    assert confidence.grad is None
    assert student.grad[0].tolist() == pytest.approx([0.5, 1.0, 0, 0])


def test_no_boxes_cost_nothing_but_still_have_gradients():
    student = torch.zeros(0, 4, requires_grad=True)
    loss = confident_boxes(student, torch.zeros(0, 4), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 4)


# ---------------------------------------------------------------------- anchors


def anchors_of_two_images(objectness: list[list[float]]) -> ImageOutputs:
    return ImageOutputs(
        images=None,
        frozen_features=None,
        features={},
        objectness=torch.tensor(objectness),
        anchor_deltas=torch.zeros(2, 10, 4),
        anchors=[APART, APART],
        propose=list,
        image_sizes=[(10, 200)] * 2,
    )


def test_the_anchors_that_stand_out_in_their_own_image_are_kept():
    teacher = anchors_of_two_images([[-9.0] * 8 + [3.0, -9.0], [-5.0] + [-9.0] * 9])
    student = anchors_of_two_images([[0.0] * 10, [1.0] * 10])
    student.anchor_deltas[0, 8] = torch.tensor([1.0, 1.0, 0, 0])
    student.anchor_deltas[0, 0] = 5.0  # of an anchor that does not stand out
    # chosen: anchor 8 of the first image (gap 3) and, though unsure, anchor 0 of the second (gap 6)
    boxes = torch.tensor(0.0).sigmoid() * 2 / 2
    loss = elastic_proposals(student, teacher, 2.0, 0.005)
    assert loss.item() == pytest.approx((9 + 36) / 2 + boxes.item())


def test_overlapping_anchors_share_one_box_term_and_keep_their_logits():
    teacher = anchors_of_two_images([[3.0, 2.0] + [-9.0] * 8, [-9.0] * 10])
    student = anchors_of_two_images([[2.0] * 2 + [-9.0] * 8, [-9.0] * 10])
    student.anchor_deltas[0, 0, 0], student.anchor_deltas[0, 1, 0] = 1.0, 2.0
    teacher.anchors[0] = torch.cat([APART[:1] + 1, APART[:1], APART[2:]])
    surest = torch.tensor(2.0).sigmoid().item()
    assert elastic_proposals(student, teacher, 1.5, 0.005).item() == pytest.approx((1 + 0) / 2 + surest)


def test_images_in_which_nothing_stands_out_cost_nothing():
    teacher, student = anchors_of_two_images([[0.0] * 10] * 2), anchors_of_two_images([[4.0] * 10] * 2)
    student.objectness.requires_grad_()
    loss = elastic_proposals(student, teacher, 2.0, 0.005)
    loss.backward()
    assert loss.item() == 0
    assert not student.objectness.grad.any()
