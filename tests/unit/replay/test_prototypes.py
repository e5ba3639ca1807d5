"""Gaussian prototypes: what they keep of a class, where they move and how they are stored."""

import pytest
import torch

from incdet.errors import CheckpointError
from incdet.replay.prototypes import Prototypes, load_prototypes, save_prototypes

WIDTH = 6


def features(count: int = 5000, seed: int = 0) -> torch.Tensor:
    """A Gaussian with mean 0..5 and correlated axes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    return torch.arange(float(WIDTH)) + torch.randn(count, WIDTH, generator=generator) @ mixing


def fitted(rank: int = WIDTH, prior: float = 0.0, **changes) -> Prototypes:
    drawn = features(**changes)
    return Prototypes.fit(drawn, torch.zeros(len(drawn), dtype=torch.long), [0], rank, prior)


@pytest.mark.parametrize("rank", [1, 3, WIDTH])
def test_the_mean_and_all_variances_are_the_features(rank):
    one, drawn = fitted(rank), features()
    torch.testing.assert_close(one.means[0], drawn.mean(dim=0))
    variances = one.factors[0].square().sum(dim=0) + one.scales[0].square()
    torch.testing.assert_close(variances, drawn.var(dim=0, correction=0))
    assert one.counts.tolist() == [len(drawn)]
    assert one.factors.shape == (1, rank, WIDTH)


def test_with_all_factors_the_covariance_is_the_features():
    (factors,) = fitted().factors
    torch.testing.assert_close(factors.T @ factors, features().T.cov(correction=0))


def test_samples_have_the_moments_of_the_class():
    one = fitted(rank=3)
    drawn = one.sample(torch.zeros(40000, dtype=torch.long), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=0), one.means[0], atol=0.06, rtol=0)
    covariance = one.factors[0].T @ one.factors[0] + one.scales[0].square().diag()
    torch.testing.assert_close(drawn.T.cov(), covariance, atol=0.3, rtol=0.05)
    again = one.sample(torch.zeros(40000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_each_label_is_sampled_from_its_own_class():
    drawn = torch.cat([features(50), features(50) + 100])
    both = Prototypes.fit(drawn, torch.arange(100) // 50 + 4, [4, 5], 2, 0.0)
    samples = both.sample(torch.tensor([1, 0, 1]), torch.Generator().manual_seed(0))
    assert (samples.mean(dim=1) > 50).tolist() == [True, False, True]


def test_a_class_of_one_region_takes_the_spread_of_the_others():
    drawn = torch.cat([features(999), torch.full((1, WIDTH), 7.0)])
    labels = torch.tensor([0] * 999 + [1])
    rare = Prototypes.fit(drawn, labels, [0, 1], WIDTH, prior=1.0)
    shared = features(999).T.cov(correction=0) * 999 / 1000
    torch.testing.assert_close(rare.means[1], torch.full((WIDTH,), 7.0))
    torch.testing.assert_close(rare.factors[1].T @ rare.factors[1], shared / 2, rtol=1e-3, atol=1e-3)


def test_a_class_without_regions_is_known_as_such():
    some = Prototypes.fit(features(20), torch.zeros(20, dtype=torch.long), [0, 1], 3, 1.0)
    assert some.counts.tolist() == [20, 0]
    assert not some.means[1].any()
    assert len(some) == 2


def test_an_affine_map_moves_the_gaussian_as_it_moves_its_points():
    matrix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))
    moved = fitted().moved(lambda x: x @ matrix + 5)
    expected = features() @ matrix + 5
    torch.testing.assert_close(moved.means[0], expected.mean(dim=0), rtol=1e-4, atol=1e-3)
    covariance = moved.factors[0].T @ moved.factors[0]
    torch.testing.assert_close(covariance, expected.T.cov(correction=0), rtol=1e-3, atol=1e-2)


def test_they_are_stored_with_their_classes(tmp_path):
    path = tmp_path / "prototypes.safetensors"
    both = fitted(2).joined(fitted(2, seed=1))
    save_prototypes(path, both, ("cat", "dog"))
    loaded = load_prototypes(path, ("cat", "dog"))
    assert all(torch.equal(value, getattr(both, name)) for name, value in vars(loaded).items())
    with pytest.raises(CheckpointError, match="expected prototypes of dog, cat; found cat, dog"):
        load_prototypes(path, ("dog", "cat"))
    path.write_bytes(b"\0" * 10)
    with pytest.raises(CheckpointError, match=r"cannot be read.*learn that task again"):
        load_prototypes(path, ("cat", "dog"))
