"""The arithmetic of hard attention against numbers worked by hand."""

import pytest
import torch

from incdet.losses.hard_attention import annealed_scale, compensated, free_weights, mask_cost


def test_the_scale_grows_linearly_within_an_epoch():
    scales = [annealed_scale(batch, 5, 100.0) for batch in range(5)]
    assert scales == pytest.approx([0.01, 0.01 + 99.99 / 4, 0.01 + 99.99 / 2, 0.01 + 99.99 * 3 / 4, 100.0])
    assert annealed_scale(0, 1, 100.0) == 100.0


@pytest.mark.parametrize("scale", [0.0025, 1.0, 7.0])
def test_the_compensated_gradient_is_the_sigmoids_own_times_smax(scale):
    embedding = torch.tensor([-1.5, -0.2, 0.0, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    (through_mask,) = torch.autograd.grad((upstream * (scale * embedding).sigmoid()).sum(), embedding)
    (wanted,) = torch.autograd.grad((upstream * 400 * embedding.sigmoid()).sum(), embedding)
    assert torch.allclose(compensated(through_mask, embedding.detach(), scale, 400.0), wanted)


def test_a_vanished_gradient_is_not_blown_up():
    embedding = torch.tensor([6.0, -6.0])
    assert compensated(torch.zeros(2), embedding, 400.0, 400.0).tolist() == [0.0, 0.0]
    assert compensated(torch.ones(2), embedding, 400.0, 400.0).isfinite().all()


def test_units_in_use_cost_nothing_and_free_ones_their_mask():
    masks = {"a": torch.tensor([0.5, 1.0]), "b": torch.tensor([0.25, 0.0])}
    fresh = {"a": torch.zeros(2), "b": torch.zeros(2)}
    assert mask_cost(masks, fresh).item() == pytest.approx(1.75 / 4)  # the mean mask
    used = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.5, 1.0])}
    assert mask_cost(masks, used).item() == pytest.approx((0.5 + 0.25 * 0.5) / 1.5)
    full = {"a": torch.ones(2), "b": torch.ones(2)}
    assert mask_cost(masks, full).item() == 0


def test_a_weight_between_units_in_use_stays_and_images_are_always_in_use():
    used_out, used_in = torch.tensor([1.0, 0.25]), torch.tensor([1.0, 0.5, 0.0])
    assert free_weights((2, 3), used_out, used_in).tolist() == [[0.0, 0.5, 1.0], [0.75, 0.75, 1.0]]
    assert free_weights((2, 3), used_out, None).tolist() == [[0.0], [0.75]]


def test_all_places_of_a_kernel_have_one_share():
    used_out, used_in = torch.tensor([1.0, 0.25]), torch.tensor([1.0, 0.5, 0.0])
    shares = free_weights((2, 3, 5, 5), used_out, used_in)
    assert shares.shape == (2, 3, 1, 1)
    assert shares.flatten(1).tolist() == [[0.0, 0.5, 1.0], [0.75, 0.75, 1.0]]
    assert free_weights((2, 3, 5, 5), used_out, None).tolist() == [[[[0.0]]], [[[0.75]]]]


def test_a_grouped_convolution_reads_the_units_of_its_own_group():
    used_out, used_in = torch.tensor([1.0, 0.5, 1.0, 0.25]), torch.tensor([1.0, 0.0, 0.5, 0.75])
    two_groups = free_weights((4, 2, 3, 3), used_out, used_in)  # outputs 0 and 1 read inputs 0 and 1, and so on
    assert two_groups.shape == (4, 2, 1, 1)
    assert two_groups.flatten(1).tolist() == [[0.0, 1.0], [0.5, 1.0], [0.5, 0.25], [0.75, 0.75]]
    depthwise = free_weights((4, 1, 3, 3), used_out, used_in)
    assert depthwise.flatten().tolist() == [0.0, 1.0, 0.5, 0.75]
