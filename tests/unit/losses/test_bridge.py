"""Attention in boxes, likely future objects, and the distribution of two teachers, worked by hand."""

import math

import pytest
import torch

from incdet.losses.bridge import (
    box_attention,
    bridged_boxes,
    bridged_classification,
    bridged_targets,
    largest_iou,
    likely_future,
)

NO, YES = torch.tensor([False]), torch.tensor([True])


def logits(*rows) -> torch.Tensor:
    """Logits whose softmax are the given probabilities."""
    return torch.tensor(rows).log()


# ---------------------------------------------------------------------- the future


def test_attention_is_one_where_features_are_equally_strong():
    boxes = [torch.tensor([[0.0, 0.0, 16.0, 16.0], [8.0, 8.0, 40.0, 24.0]]), torch.zeros(0, 4)]
    attention = box_attention([torch.ones(2, 3, 8, 8)], boxes, [(64, 64), (64, 64)])
    assert attention.tolist() == pytest.approx([1.0, 1.0])


def test_attention_of_a_box_is_that_of_its_cells_in_its_own_image():
    """One cell of 2 by 2 is strong, (1, 1), in the second image: mean square 9, softmax e^9 : 1 : 1 : 1, times 4."""
    features = torch.zeros(2, 2, 2, 2)
    features[1, :, 1, 1] = torch.tensor([3.0, -3.0])
    corner = torch.tensor([[24.0, 24.0, 32.0, 32.0]])  # at stride 16, from the middle of the strong cell outwards
    across = torch.tensor([[8.0, 24.0, 24.0, 32.0]])  # from the middle of the weak cell beside it to that of the strong
    attention = box_attention([features], [corner, torch.cat([corner, across])], [(32, 32), (32, 32)])
    strong, weak = (4 * strength / (math.exp(9) + 3) for strength in (math.exp(9), 1.0))
    assert attention.tolist() == pytest.approx([1.0, strong, (strong + weak) / 2])


def test_levels_are_averaged_and_padding_does_not_move_the_boxes():
    """Of 60 rows padded to 64, a level of 8 rows has stride 8, and one of 4 rows stride 16."""
    fine, coarse = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)
    fine[0, 0, 4:, 4:] = 2.0
    box = [torch.tensor([[40.0, 40.0, 56.0, 56.0]])]
    alone = box_attention([fine], box, [(60, 64)])
    assert alone.item() == pytest.approx(64 * math.exp(4) / (16 * math.exp(4) + 48))
    assert box_attention([fine, coarse], box, [(60, 64)]).item() == pytest.approx((alone.item() + 1) / 2)


def test_attention_has_no_gradients():
    features = torch.rand(1, 2, 4, 4, requires_grad=True)
    assert not box_attention([features], [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [(32, 32)]).requires_grad


def test_a_likely_object_is_in_the_top_by_both_and_far_from_what_is_known():
    objectness = torch.tensor([9.0, 8.0, 7.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0])
    attention = torch.tensor([1.0, 9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    overlap = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    chosen = likely_future(objectness, attention, overlap, share=0.3, far=0.1)
    # The first three by objectness are 0, 1, 2, by attention 1, 2, 3; of 1 and 2, the latter is not far.
    assert torch.where(chosen)[0].tolist() == [1]


@pytest.mark.parametrize(("count", "share"), [(0, 0.5), (9, 0.1), (10, 0.0)])
def test_a_share_of_less_than_one_negative_is_none(count, share):
    values = torch.arange(count, dtype=torch.float32)
    assert not likely_future(values, values, torch.zeros(count), share, far=0.1).any()


def test_the_largest_iou_is_0_where_there_is_nothing_to_overlap():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    others = torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 1.0, 3.0, 3.0]])  # IoU 2 / 4 and 1 / 7 with the first
    assert largest_iou(boxes, others).tolist() == pytest.approx([0.5, 0.0])
    assert largest_iou(boxes, others[:0]).tolist() == [0.0, 0.0]
    assert largest_iou(boxes[:0], others).shape == (0,)


# ---------------------------------------------------------------------- two teachers


def test_off_new_objects_the_interim_detector_shares_out_the_old_ones_background():
    old, interim = logits([0.5, 0.1, 0.4]), logits([0.25, 0.75])
    assert bridged_targets(old, interim, NO)[0].tolist() == pytest.approx([0.5, 0.1, 0.4 * 0.25, 0.4 * 0.75])


def test_on_new_objects_the_old_detector_shares_out_the_interim_ones_background():
    old, interim = logits([0.5, 0.1, 0.4]), logits([0.25, 0.75])
    expected = [0.75 * 0.5, 0.75 * 0.1, 0.25, 0.75 * 0.4]
    assert bridged_targets(old, interim, YES)[0].tolist() == pytest.approx(expected)


def test_targets_are_distributions_and_agree_on_the_background():
    torch.manual_seed(0)
    old, interim = torch.randn(50, 6) * 4, torch.randn(50, 3) * 4
    is_new = torch.arange(50) % 2 == 0
    targets = bridged_targets(old, interim, is_new)
    assert targets.shape == (50, 8)
    assert (targets >= 0).all()
    assert torch.allclose(targets.sum(dim=1), torch.ones(50), atol=1e-6)
    both = old.softmax(dim=1)[:, -1] * interim.softmax(dim=1)[:, -1]  # whoever is believed
    assert torch.allclose(targets[:, -1], both, atol=1e-6)


@pytest.mark.parametrize("is_new", [NO, YES], ids=["old", "new"])
def test_teachers_that_are_sure(is_new):
    """An old object: the interim detector sees background; a new one: the old detector does; nothing: both do."""
    sure = 100.0
    old_object, nothing = torch.tensor([[sure, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, sure]])
    new_object, nothing_new = torch.tensor([[sure, 0.0]]), torch.tensor([[0.0, sure]])
    assert bridged_targets(old_object, nothing_new, is_new)[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert bridged_targets(nothing, new_object, is_new)[0].tolist() == pytest.approx([0, 0, 1, 0])
    assert bridged_targets(nothing, nothing_new, is_new)[0].tolist() == pytest.approx([0, 0, 0, 1])


def test_where_both_see_their_own_the_place_decides():
    old_object, new_object = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[100.0, 0.0]])
    assert bridged_targets(old_object, new_object, NO)[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert bridged_targets(old_object, new_object, YES)[0].tolist() == pytest.approx([0, 0, 1, 0])


def test_cross_entropy_is_averaged_over_regions_and_columns():
    student = logits([0.5, 0.25, 0.25], [0.1, 0.1, 0.8])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    expected = -(math.log(0.5) + 0.5 * math.log(0.1) + 0.5 * math.log(0.8)) / 6
    assert bridged_classification(student, targets).item() == pytest.approx(expected)


def test_no_student_does_better_than_the_targets_themselves():
    targets = torch.tensor([[0.2, 0.3, 0.5]])
    best = bridged_classification(targets.log(), targets)
    torch.manual_seed(0)
    assert all(bridged_classification(torch.randn(1, 3), targets) > best for _ in range(20))


def test_boxes_follow_the_believed_teachers_classes():
    """Two old classes and one new; the student is 0 everywhere, the old detector 1, the interim one 2."""
    student, old, interim = torch.zeros(2, 3, 4), torch.ones(2, 2, 4), torch.full((2, 1, 4), 2.0)
    assert bridged_boxes(student, old, interim, torch.tensor([False, False]), 2).item() == 4.0
    assert bridged_boxes(student, old, interim, torch.tensor([True, True]), 2).item() == 16.0
    assert bridged_boxes(student, old, interim, torch.tensor([True, False]), 2).item() == 10.0
    student[0, :2], student[1, 2] = 7.0, 7.0  # the classes that the region does not concern
    assert bridged_boxes(student, old, interim, torch.tensor([True, False]), 2).item() == 10.0


def test_class_agnostic_boxes_follow_the_believed_teacher():
    student, old, interim = torch.zeros(2, 1, 4), torch.ones(2, 1, 4), torch.full((2, 1, 4), 2.0)
    assert bridged_boxes(student, old, interim, torch.tensor([True, False]), 2).item() == 10.0


def test_without_regions_there_is_a_zero_with_gradients():
    student, deltas = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    nobody = torch.zeros(0, dtype=torch.bool)
    targets = bridged_targets(torch.zeros(0, 3), torch.zeros(0, 2), nobody)
    loss = bridged_classification(student, targets)
    loss = loss + bridged_boxes(deltas, torch.zeros(0, 2, 4), torch.zeros(0, 1, 4), nobody, 2)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None
