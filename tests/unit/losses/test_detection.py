"""The base losses against numbers worked by hand (two classes, so the background is column 2)."""

import math
from dataclasses import replace

import pytest
import torch

from incdet.losses.detection import region_losses, rpn_losses, smooth_l1
from incdet.structures import ImageOutputs, RegionOutputs

BOX_LOSS = smooth_l1(0.5)


def anchors_of_one_image(labels, objectness, deltas) -> ImageOutputs:
    """Three or more anchors whose regression targets are all zero."""
    deltas = torch.tensor([deltas], dtype=torch.float32)
    return ImageOutputs(
        images=None,
        frozen_features=None,
        features={},
        objectness=torch.tensor([objectness], dtype=torch.float32),
        anchor_deltas=deltas,
        anchors=[torch.zeros(len(labels), 4)],
        propose=list,
        image_sizes=[(8, 8)],
        anchor_labels=torch.tensor([labels], dtype=torch.float32),
        anchor_targets=torch.zeros_like(deltas),
    )


def regions(labels, logits, deltas, weights=None) -> RegionOutputs:
    """Regions whose regression targets are all zero."""
    count = len(labels)
    return RegionOutputs(
        pooled=torch.zeros(count, 1, 1, 1),
        features=torch.zeros(count, 1),
        logits=torch.tensor(logits, dtype=torch.float32),
        deltas=torch.tensor(deltas, dtype=torch.float32),
        boxes=torch.zeros(count, 4),
        image_index=torch.zeros(count, dtype=torch.int64),
        labels=torch.tensor(labels),
        delta_targets=torch.zeros(count, 4),
        weights=torch.tensor(weights if weights is not None else [1.0] * count),
    )


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_rpn_averages_over_sampled_anchors_only():
    deltas = [[1.0, 0.0, 0.25, 0.0], [9.0] * 4, [9.0] * 4]
    outputs = anchors_of_one_image([1, 0, -1], [log_odds(0.8), log_odds(0.4), 50.0], deltas)
    losses = rpn_losses(outputs, BOX_LOSS)
    assert losses["loss_rpn_cls"].item() == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2, rel=1e-5)
    # Linear beyond beta: 1 - 0.25; square below: 0.25^2 / (2 * 0.5). Only the positive anchor, over both sampled.
    assert losses["loss_rpn_loc"].item() == pytest.approx((0.75 + 0.0625) / 2)


def test_rpn_without_a_sampled_anchor_is_zero_and_not_nan():
    losses = rpn_losses(anchors_of_one_image([-1, -1], [1.0, 2.0], [[1.0] * 4] * 2), BOX_LOSS)
    assert [value.item() for value in losses.values()] == [0, 0]


def test_a_fixed_count_takes_the_place_of_the_sampled_anchors():
    outputs = anchors_of_one_image([1, 0, -1], [0.0] * 3, [[1.0, 0, 0, 0]] * 3)
    losses = rpn_losses(outputs, BOX_LOSS, count=8)
    assert losses["loss_rpn_cls"].item() == pytest.approx(2 * math.log(2) / 8)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.75 / 8)


def test_smooth_l1_without_a_square_is_the_distance_and_has_a_gradient_at_zero():
    deltas = torch.tensor([[1.0, -2.0, 0.0, 0.5]], requires_grad=True)
    loss = smooth_l1(0.0)(deltas, torch.zeros(1, 4), torch.zeros(1, 4))
    assert loss.tolist() == [3.5]
    loss.sum().backward()
    assert deltas.grad.tolist() == [[1.0, -1.0, 0.0, 1.0]]


def test_regions_use_the_box_of_their_own_class():
    deltas = [[[1.0, 0, 0, 0], [7.0] * 4], [[7.0] * 4, [0, 0, 0, 0.25]], [[7.0] * 4, [7.0] * 4]]
    losses = region_losses(regions([0, 1, 2], [[0.0, 0.0, 0.0]] * 3, deltas), BOX_LOSS)
    assert losses["loss_cls"].item() == pytest.approx(math.log(3))
    assert losses["loss_box_reg"].item() == pytest.approx((0.75 + 0.0625) / 3)


def test_one_box_for_all_classes_is_used_by_every_class():
    deltas = [[[1.0, 0, 0, 0]], [[0, 0, 0, 0.25]], [[7.0] * 4]]
    loss = region_losses(regions([0, 1, 2], [[0.0] * 3] * 3, deltas), BOX_LOSS)["loss_box_reg"]
    assert loss.item() == pytest.approx((0.75 + 0.0625) / 3)


def test_the_last_column_is_the_background():
    logits = [[0.0, 0.0, math.log(2)]]  # softmax 1/4 1/4 1/2
    assert region_losses(regions([2], logits, [[[1.0] * 4] * 2]), BOX_LOSS)["loss_cls"].item() == pytest.approx(
        math.log(2)
    )


def test_weights_scale_both_losses_of_their_region():
    deltas = [[[1.0, 0, 0, 0], [0.0] * 4], [[1.0, 0, 0, 0], [0.0] * 4]]
    losses = region_losses(regions([0, 0], [[0.0] * 3] * 2, deltas, weights=[0.5, 0.0]), BOX_LOSS)
    assert losses["loss_cls"].item() == pytest.approx(0.5 * math.log(3) / 2)
    assert losses["loss_box_reg"].item() == pytest.approx(0.5 * 0.75 / 2)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 5.0, 1.0]])
def test_an_ignored_region_costs_nothing_and_is_not_counted(weights):
    deltas = [[[1.0, 0, 0, 0], [0.0] * 4], [[9.0] * 4, [9.0] * 4], [[9.0] * 4, [9.0] * 4]]
    losses = region_losses(regions([0, -1, 2], [[0.0] * 3, [50.0, 0.0, 0.0], [0.0] * 3], deltas, weights), BOX_LOSS)
    assert losses["loss_cls"].item() == pytest.approx(math.log(3))
    assert losses["loss_box_reg"].item() == pytest.approx(0.75 / 2)


def test_no_regions_cost_nothing():
    none = regions([2], [[0.0] * 3], [[[0.0] * 4] * 2])
    fields = ("logits", "deltas", "labels", "delta_targets", "weights")
    empty = replace(none, **{name: getattr(none, name)[:0] for name in fields})
    assert [value.item() for value in region_losses(empty, BOX_LOSS).values()] == [0, 0]


@pytest.mark.parametrize("skipped", ["loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"])
def test_a_skipped_loss_is_absent_and_the_others_stay(skipped):
    outputs = anchors_of_one_image([1, 0], [0.0, 0.0], [[1.0] * 4] * 2)
    sampled = regions([0, 2], [[0.0] * 3] * 2, [[[1.0] * 4] * 2] * 2)
    whole = rpn_losses(outputs, BOX_LOSS) | region_losses(sampled, BOX_LOSS)
    part = rpn_losses(outputs, BOX_LOSS, {skipped}) | region_losses(sampled, BOX_LOSS, {skipped})
    assert part == {name: value for name, value in whole.items() if name != skipped}


def test_outputs_without_targets_are_a_mistake_of_the_caller():
    outputs = anchors_of_one_image([1], [0.0], [[0.0] * 4])
    outputs.anchor_labels = None
    with pytest.raises(ValueError, match="computed with targets"):
        rpn_losses(outputs, BOX_LOSS)
    sampled = regions([0], [[0.0] * 3], [[[0.0] * 4] * 2])
    sampled.labels = None
    with pytest.raises(ValueError, match="sampled with targets"):
        region_losses(sampled, BOX_LOSS)
