"""The fit against what can be worked out, and its promises about seeds and modes."""

import pytest
import torch

from incdet.align.baselines import fit_mean_shift
from incdet.align.energy import EnergyNetwork
from incdet.align.fit import PRESETS, EnergySettings, fit_energy
from incdet.errors import ConfigError, DivergenceError, MethodError

SHIFT = torch.tensor([0.6, -0.3, 0.0, 0.9])


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (old, new) that drifted by one vector."""
    new = torch.randn(200, 4, generator=torch.Generator().manual_seed(3))
    return new + SHIFT, new


def fit(pairs, **settings):
    seed = settings.pop("seed", 0)
    return fit_energy(*pairs, EnergySettings(**settings), seed=seed, show_progress=False)


def test_the_linear_loss_is_stationary_where_the_means_match():
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(50, 4, generator=generator, dtype=torch.float64) + i for i in (1, 0))
    network = EnergyNetwork(4, ()).double()
    with torch.no_grad():
        network.layers[0].weight.copy_((old.mean(dim=0) - new.mean(dim=0)) / (30 * 0.1))
    (network(network.walk(new, 30, 0.1)) - network(old)).mean().backward()
    assert network.layers[0].weight.grad.abs().max().item() < 1e-12
    torch.testing.assert_close(network.walk(new, 30, 0.1).mean(dim=0), old.mean(dim=0))


def test_the_linear_fit_finds_the_mean_shift(pairs):
    aligner = fit(pairs, hidden=(), iterations=1200, learning_rate=1e-3, ema=0.95)
    torch.testing.assert_close(aligner(pairs[1]), fit_mean_shift(*pairs)(pairs[1]), rtol=0, atol=0.02)


def test_the_fit_makes_old_latents_familiar_and_brings_new_ones_nearer(pairs):
    old, new = pairs
    aligner = fit(pairs, hidden=(16,), iterations=600, learning_rate=1e-3)
    assert aligner.network(old).mean() > aligner.network(new).mean()
    assert (aligner(new) - old).norm(dim=1).mean().item() < 0.5 * SHIFT.norm().item()


def test_the_average_keeps_its_share_of_each_step(pairs):
    def bias(ema: float, learning_rate: float = 1e-4) -> torch.Tensor:
        return fit(pairs, iterations=1, ema=ema, learning_rate=learning_rate).network.layers[0].bias

    start = bias(ema=0, learning_rate=1e-30)
    # RMSprop's first step is lr * gradient / sqrt(0.01 gradient^2): ten times the learning rate.
    assert (bias(ema=0) - start).abs().max().item() == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(bias(ema=0.75) - start, 0.25 * (bias(ema=0) - start), rtol=1e-3, atol=1e-7)


def test_the_seed_decides_everything_and_the_runs_own_is_left_alone(pairs):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (fit(pairs, iterations=3, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["network.layers.0.weight"], other["network.layers.0.weight"])


def test_who_watches_sees_every_iteration(pairs):
    seen = []
    aligner = fit_energy(
        *pairs,
        EnergySettings(iterations=3),
        show_progress=False,
        watch=lambda done, aligner: seen.append((done, aligner(pairs[1]))),
    )
    assert [done for done, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], aligner(pairs[1]))
    assert not torch.equal(seen[0][1], seen[1][1])


def test_it_fits_where_autograd_is_off(pairs):
    expected = fit(pairs, iterations=3)(pairs[1])
    with torch.inference_mode():
        inside = fit([latents.clone() for latents in pairs], iterations=3)
    assert torch.equal(inside(pairs[1]), expected)
    assert not any(parameter.requires_grad or parameter.is_inference() for parameter in inside.parameters())


def test_five_percent_of_the_new_latents_are_familiar(pairs):
    aligner = fit(pairs, iterations=50)
    assert aligner.is_familiar(pairs[1]).sum().item() == 10
    assert aligner.is_familiar(pairs[0]).sum().item() > 10


def test_provenance_says_how_it_was_fitted(pairs):
    provenance = fit(pairs, iterations=2, seed=5).provenance
    assert provenance["settings"]["iterations"] == 2
    assert (provenance["seed"], provenance["latents"]) == (5, 200)


@pytest.mark.parametrize(
    ("name", "layers", "iterations", "ema", "step_size"),
    [
        ("toy_32", 1, 17100, 0.99, 0.1),
        ("toy_512", 1, 8500, 0.89, 0.1),
        ("classification", 2, 1500, 0.89, 0.1),
        ("classification_linear", 0, 1500, 0.89, 0.1),
        ("detection", 1, 1000, 0.89, 0.1),
        ("detection_10+10", 1, 1000, 0.89, 0.01),
        ("detection_19+1", 0, 1000, 0.89, 0.0001),
    ],
)
def test_presets_are_the_released_settings(name, layers, iterations, ema, step_size):
    preset = PRESETS[name]
    assert (preset.hidden, preset.iterations, preset.ema) == ((64,) * layers, iterations, ema)
    assert (preset.step_size, preset.steps, preset.batch_size, preset.learning_rate) == (step_size, 30, 128, 1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": (64, 0)},
        {"iterations": 0},
        {"batch_size": 0},
        {"ema": 1.0},
        {"ema": -0.1},
        {"steps": -1},
        {"step_size": -0.1},
        {"learning_rate": 0.0},
        {"familiar_quantile": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EnergySettings(**wrong)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 4), r"\[3, 4\] from the previous"),
        (torch.zeros(0, 4), torch.zeros(0, 4), "R > 0"),
        (torch.zeros(4), torch.zeros(4), r"\(R, D\)"),
        (torch.zeros(3, 4), torch.full((3, 4), torch.nan), "current model are not all finite"),
        (torch.full((3, 4), torch.inf), torch.zeros(3, 4), "previous model are not all finite"),
    ],
)
def test_what_are_not_pairs_is_refused(old, new, complaint):
    with pytest.raises(MethodError, match=complaint):
        fit((old, new), iterations=1)


def test_divergence_is_reported(pairs):
    with pytest.raises(DivergenceError, match="learning_rate"):
        fit(pairs, iterations=3, learning_rate=1e38)
