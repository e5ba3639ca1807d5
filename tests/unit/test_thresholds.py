"""The crossing of two Gaussians, against densities computed here, and the cases in which there is none."""

from types import SimpleNamespace

import numpy as np
import pytest

from incdet.thresholds import FEWEST, mixture_threshold


def two_kinds(low: float, high: float, deviation: float, counts: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(low, deviation, counts[0]), rng.normal(high, deviation, counts[1])])


def density(x: float, mean: float, deviation: float) -> float:
    return np.exp(-(((x - mean) / deviation) ** 2) / 2) / deviation


def test_of_two_equal_kinds_the_threshold_is_halfway():
    assert mixture_threshold(two_kinds(0.2, 0.8, 0.05, (2000, 2000)), 0.7) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("counts", [(3000, 1000), (1000, 3000), (3800, 200)])
def test_at_the_threshold_both_weighted_densities_are_equal(counts):
    low, high, deviation = 0.25, 0.75, 0.1
    threshold = mixture_threshold(two_kinds(low, high, deviation, counts), 0.7)
    grid = np.linspace(low, high, 100_001)
    lower, upper = counts[0] * density(grid, low, deviation), counts[1] * density(grid, high, deviation)
    crossing = grid[np.argmin(np.abs(lower - upper))]
    assert low < threshold < high
    assert threshold == pytest.approx(crossing, abs=0.015)


def test_the_rarer_the_good_kind_the_higher_the_threshold():
    shares = [(1000, 3000), (2000, 2000), (3000, 1000)]
    thresholds = [mixture_threshold(two_kinds(0.3, 0.8, 0.1, counts), 0.7) for counts in shares]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] - thresholds[0] > 0.02


def test_the_same_scores_give_the_same_threshold_in_any_order():
    scores = two_kinds(0.2, 0.7, 0.1, (300, 200)).astype(np.float32)
    assert mixture_threshold(scores, 0.7) == mixture_threshold(scores.copy(), 0.7)
    assert mixture_threshold(scores[::-1], 0.7) == pytest.approx(mixture_threshold(scores, 0.7), abs=1e-3)


@pytest.mark.parametrize(
    "scores",
    [
        np.zeros(0, np.float32),
        np.linspace(0.1, 0.9, FEWEST - 1),
        np.full(1000, 0.9),
        np.repeat([0.2, 0.9], 500),
    ],
    ids=["none", "few", "all the same", "two values"],
)
def test_few_different_scores_fall_back(scores):
    assert mixture_threshold(scores, 0.7) == 0.7


def test_scores_with_one_hump_fall_back():
    one_hump = np.random.default_rng(0).normal(0.5, 0.1, 4000)
    assert mixture_threshold(one_hump, 0.7) == 0.7


def test_where_one_kind_is_likelier_at_both_means_it_falls_back(monkeypatch):
    """Means 0.2 and 0.5, deviation 0.1: the densities cross at 0.35 + 0.01 ln(w0 / w1) / 0.3."""
    fitted = {"means_": np.array([[0.5], [0.2]]), "covariances_": np.array([[0.01]])}

    def fit_to(shares):
        model = SimpleNamespace(weights_=np.array(shares), **fitted)
        monkeypatch.setattr("sklearn.mixture.GaussianMixture", lambda *_, **__: SimpleNamespace(fit=lambda _: model))
        return mixture_threshold(np.linspace(0, 1, FEWEST), 0.7)

    assert fit_to([0.2, 0.8]) == pytest.approx(0.35 + 0.01 * np.log(4) / 0.3)
    assert fit_to([0.011, 0.989]) == pytest.approx(0.35 + 0.01 * np.log(0.989 / 0.011) / 0.3)  # 0.49997
    assert fit_to([0.010, 0.990]) == 0.7  # 0.503 lies above the upper mean
    assert fit_to([0.990, 0.010]) == 0.7  # 0.197 below the lower one
