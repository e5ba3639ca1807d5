"""The baselines in closed form: what they recover, and what their limits are."""

import pytest
import torch

from incdet.align.baselines import fit_mean_shift, fit_ridge
from incdet.errors import ConfigError, MethodError


def latents(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_the_mean_shift_by_hand():
    aligner = fit_mean_shift(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert aligner(torch.tensor([[10.0, 10.0]])).tolist() == [[11.0, 13.0]]


def test_ridge_by_hand():
    # One direction: centred new (-1, 1), difference 0 and 2 (shift 1, rest -1 and 1), penalty 0.5 * 2: V = 2 / (2 + 1).
    aligner = fit_ridge(torch.tensor([[3.0], [7.0]]), torch.tensor([[3.0], [5.0]]), strength=0.5)
    assert aligner(torch.tensor([[4.0], [7.0]]))[:, 0].tolist() == pytest.approx([5.0, 7 + 1 + 3 * 2 / 3])


def test_ridge_recovers_an_affine_drift_far_from_the_origin():
    new = 100 + latents(300, 12)
    mix, offset = torch.eye(12) + 0.3 * latents(12, 12, seed=1), latents(1, 12, seed=2)
    aligner = fit_ridge(new @ mix + offset, new, strength=1e-8)
    unseen = 100 + 3 * latents(50, 12, seed=3)
    torch.testing.assert_close(aligner(unseen), unseen @ mix + offset, rtol=1e-4, atol=1e-3)


def test_strong_ridge_is_the_mean_shift():
    old, new = latents(40, 6, seed=1), latents(40, 6, seed=2)
    torch.testing.assert_close(fit_ridge(old, new, strength=1e9)(new), fit_mean_shift(old, new)(new))


def test_the_strength_has_no_unit():
    old, new = latents(40, 6, seed=1), latents(40, 6, seed=2)
    torch.testing.assert_close(fit_ridge(8 * old, 8 * new)(8 * new), 8 * fit_ridge(old, new)(new))


@pytest.mark.parametrize("rows", [1, 5])
def test_ridge_with_fewer_latents_than_directions_is_finite_and_keeps_the_mean(rows):
    old, new = latents(rows, 20, seed=1), latents(rows, 20, seed=2)
    torch.testing.assert_close(fit_ridge(old, new)(new).mean(dim=0), old.mean(dim=0))


def test_rows_stand_alone_and_half_precision_comes_back():
    old, new = latents(40, 6, seed=1), latents(40, 6, seed=2)
    for fit in (fit_mean_shift, fit_ridge):
        with torch.inference_mode():
            aligner = fit(old.clone(), new.clone())
        assert not any(parameter.is_inference() for parameter in aligner.parameters())
        torch.testing.assert_close(torch.cat([aligner(row[None]) for row in new]), aligner(new))
        assert aligner(new.half()).dtype == torch.float16
        assert aligner.provenance["latents"] == 40


@pytest.mark.parametrize("strength", [0.0, -1.0, float("inf"), float("nan")])
def test_a_strength_that_is_none_is_refused(strength):
    with pytest.raises(ConfigError, match="strength"):
        fit_ridge(latents(4, 2), latents(4, 2), strength=strength)


def test_what_are_not_pairs_is_refused():
    for fit in (fit_mean_shift, fit_ridge):
        with pytest.raises(MethodError, match="same inputs"):
            fit(latents(4, 2), latents(5, 2))
