"""The paired energy begins as ridge regression, learns what is not linear in a drift, and its walk can be trained."""

import pytest
import torch

from incdet.align.baselines import fit_ridge
from incdet.align.energy import ACTIVATIONS, EnergyNetwork, autograd_walk
from incdet.align.paired import _begin, fit_paired_energy
from incdet.errors import MethodError


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (old, new) that no affine map brings together."""
    new = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3))
    return new + new.abs(), new


@pytest.fixture(scope="module")
def fitted(pairs):
    return fit_paired_energy(pairs[0][:1000], pairs[1][:1000], iterations=300, show_progress=False)


def error(aligner, pairs) -> float:
    old, new = pairs
    return (aligner(new[1000:]) - old[1000:]).square().mean().item()


def test_before_training_it_is_ridge_regression(pairs):
    torch.testing.assert_close(_begin(*pairs, 0.01, seed=0)(pairs[1]), fit_ridge(*pairs, 0.01)(pairs[1]))


def test_it_learns_what_is_not_linear(pairs, fitted):
    ridge = fit_ridge(pairs[0][:1000], pairs[1][:1000])
    assert error(fitted, pairs) < 0.25 * error(ridge, pairs)


def test_rows_do_not_depend_on_each_other_and_nothing_is_left_to_train(pairs, fitted):
    new = pairs[1][:7]
    torch.testing.assert_close(fitted(new)[3:4], fitted(new[3:4]))
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


def test_the_seed_decides_everything_and_the_runs_own_is_left_alone(pairs):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (
        fit_paired_energy(*pairs, iterations=3, seed=seed, show_progress=False).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["network.layers.0.weight"], other["network.layers.0.weight"])


def test_it_fits_where_autograd_is_off(pairs):
    expected = fit_paired_energy(*pairs, iterations=3, show_progress=False)(pairs[1])
    with torch.inference_mode():
        inside = fit_paired_energy(*(latents.clone() for latents in pairs), iterations=3, show_progress=False)
    assert torch.equal(inside(pairs[1]), expected)


def test_latents_that_are_all_alike_are_shifted():
    old, new = torch.ones(20, 3), torch.zeros(20, 3)
    aligner = fit_paired_energy(old, new, iterations=3, show_progress=False)
    torch.testing.assert_close(aligner(new), old)


def test_what_are_not_pairs_is_refused():
    with pytest.raises(MethodError, match="R > 0"):
        fit_paired_energy(torch.zeros(0, 3), torch.zeros(0, 3))


@pytest.mark.parametrize("hidden", [(16,), (12, 8)])
def test_the_smooth_walk_equals_autograd(hidden):
    torch.manual_seed(0)
    network = EnergyNetwork(5, hidden, "smooth_leaky_relu").double()
    features = torch.randn(30, 5, dtype=torch.float64)
    torch.testing.assert_close(network.walk(features, 4, 1.0), autograd_walk(network, features, 4, 1.0))


def test_the_walk_is_differentiated_with_respect_to_every_parameter_but_the_last_bias():
    torch.manual_seed(0)
    network = EnergyNetwork(4, (6, 5), "smooth_leaky_relu").double()
    features = torch.randn(3, 4, dtype=torch.float64)
    *parameters, last = network.parameters()

    def walk(*values):
        names = [name for name, _ in network.named_parameters()][:-1]
        return torch.func.functional_call(
            _Walk(network), {f"network.{n}": v for n, v in zip(names, values, strict=True)}, features
        )

    assert torch.autograd.gradcheck(walk, [parameter.detach().requires_grad_() for parameter in parameters])
    network.differentiable_walk(features, 3, 0.5).sum().backward()
    assert last.grad is None  # a constant added to all scores moves nothing


class _Walk(torch.nn.Module):
    def __init__(self, network: EnergyNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network.differentiable_walk(features, 3, 0.5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_know_their_gradients(name):
    activate, backward = ACTIVATIONS[name]
    inputs = torch.tensor([-30.0, -1.5, 0.4, 30.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(activate(inputs).sum(), inputs)
    torch.testing.assert_close(backward(torch.full_like(inputs, 2.0), inputs), 2 * expected)
