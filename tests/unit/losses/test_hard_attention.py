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
    assert free_weights(used_out, used_in).tolist() == [[0.0, 0.5, 1.0], [0.75, 0.75, 1.0]]
    assert free_weights(used_out, None).tolist() == [[0.0], [0.75]]
