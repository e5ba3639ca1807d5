"""Where old features have gone: maps from the previous model's features to the current one's."""

import pytest
import torch

from incdet.align.base import LatentPairs
from incdet.align.drift import KINDS, fit_drift, local_shift
from incdet.errors import ConfigError, MethodError


def pairs(move, count: int = 400, width: int = 4) -> LatentPairs:
    old = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    return LatentPairs(old, move(old), torch.zeros(count))


def test_each_kind_follows_a_common_shift_but_none():
    shift = torch.tensor([1.0, -2.0, 0.0, 3.0])
    points = torch.zeros(3, 4)
    for kind in KINDS:
        expected = points if kind == "none" else points + shift
        moved = fit_drift(kind, pairs(lambda x: x + shift), 1e-4, 0.2)(points)
        torch.testing.assert_close(moved, expected, atol=1e-3, rtol=0)


def test_a_ridge_follows_a_linear_map_from_old_to_new():
    matrix = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 0.5]])
    move = fit_drift("ridge", pairs(lambda x: x @ matrix + 1), 1e-6, 0.2)
    torch.testing.assert_close(move(torch.eye(4)), matrix + 1, atol=1e-3, rtol=0)


def test_a_local_shift_follows_the_neighbours():
    anchors = torch.cat([torch.full((50, 2), -5.0), torch.full((50, 2), 5.0)])
    displacements = torch.cat([torch.full((50, 2), 1.0), torch.full((50, 2), -1.0)])
    points = torch.tensor([[-4.0, -4.0], [4.0, 4.0], [0.0, 0.0]])
    moved = local_shift(points, anchors, displacements, bandwidth=0.2)
    torch.testing.assert_close(moved, torch.tensor([[-3.0, -3.0], [3.0, 3.0], [0.0, 0.0]]))


def test_local_weights_by_hand():
    anchors, displacements = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    (moved,) = local_shift(torch.zeros(1, 1), anchors, displacements, bandwidth=0.5)  # median distance 2, width 1
    weights = torch.tensor([-0.5, -2.0, -4.5]).exp()
    assert moved.item() == pytest.approx((weights[0] / weights.sum()).item())


def test_a_wide_kernel_is_the_mean_shift_and_scale_does_not_matter():
    drifted = pairs(lambda x: x + x.square())
    wide = fit_drift("sdc", drifted, 0.01, 100.0)(torch.zeros(1, 4))
    torch.testing.assert_close(wide[0], (drifted.new - drifted.old).mean(dim=0), atol=1e-3, rtol=0)
    scaled = LatentPairs(1000 * drifted.old, 1000 * drifted.new, drifted.labels)
    one, thousand = (fit_drift("sdc", p, 0.01, 0.2) for p in (drifted, scaled))
    points = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(thousand(1000 * points), 1000 * one(points), rtol=1e-3, atol=1e-1)


def test_a_point_on_an_anchor_of_a_single_place_is_moved_with_it():
    moved = local_shift(torch.ones(1, 2), torch.ones(3, 2), torch.full((3, 2), 2.0), bandwidth=0.2)
    assert moved.tolist() == [[3.0, 3.0]]


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="expected one of none, shift, ridge, sdc, got 'affine'"):
        fit_drift("affine", pairs(lambda x: x), 0.01, 0.2)
    nothing = LatentPairs(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0))
    for kind in KINDS[1:]:
        with pytest.raises(MethodError, match="with R > 0"):
            fit_drift(kind, nothing, 0.01, 0.2)
