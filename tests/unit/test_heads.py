"""Growing a predictor keeps what it knew to the bit."""

import pytest
import torch
from torch import nn

from incdet.heads import CosineLinear, grow_cosine, grow_linear, keep_rows


@pytest.mark.parametrize("at", [0, 2, 3])
def test_old_outputs_keep_their_bits_wherever_new_ones_go(at):
    layer = nn.Linear(5, 3)
    features = torch.randn(7, 5)
    before = torch.cat([layer.weight, layer.bias[:, None]], dim=1)
    grown = grow_linear(layer, 2, at=at, std=0.01)
    after = torch.cat([grown.weight, grown.bias[:, None]], dim=1)
    old = [i for i in range(5) if not at <= i < at + 2]
    assert grown.out_features == 5
    assert torch.equal(after[old], before)
    torch.testing.assert_close(grown(features)[:, old], layer(features), rtol=1e-6, atol=1e-6)


def test_new_outputs_are_small_with_zero_bias_and_follow_the_seed():
    layer = nn.Linear(200, 3)
    torch.manual_seed(0)
    grown = grow_linear(layer, 100, at=3, std=0.01)
    assert grown.weight[3:].std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(grown.weight[3:].mean().item()) < 3e-4
    assert not grown.bias[3:].any()
    torch.manual_seed(0)
    assert torch.equal(grow_linear(layer, 100, at=3, std=0.01).weight, grown.weight)


def test_the_given_layer_is_left_alone_and_the_new_one_trains():
    layer = nn.Linear(4, 2, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    grown = grow_linear(layer, 1, at=2, std=0.01)
    grown(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.weight, weight)
    assert grown.weight.dtype == torch.float64
    assert bool(grown.weight.grad.any())


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Linear(5, 4, bias=False), CosineLinear(5, 4)])
def test_cutting_keeps_the_rows_in_their_order_and_the_kind(layer):
    features = torch.randn(7, 5)
    kept = keep_rows(layer, [3, 1])
    assert type(kept) is type(layer)
    assert kept.out_features == 2
    assert torch.allclose(kept(features), layer(features)[:, [3, 1]], atol=1e-6)
    kept.weight.data.zero_()
    assert layer.weight.any()


def test_a_cosine_head_grows_with_its_scale():
    layer = CosineLinear(5, 2)
    layer.scale.data.fill_(4.0)
    features = torch.randn(7, 5)
    grown = grow_cosine(layer, 3)
    assert grown.out_features == 5
    assert torch.allclose(grown(features)[:, :2], layer(features), atol=1e-6)
    assert grown(features).abs().max() <= 4 + 1e-5
