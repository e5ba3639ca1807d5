"""The walk against its definition, by hand and by autograd, and where it has to run."""

import copy
import pickle

import pytest
import torch

from incdet.align.energy import EnergyAligner, EnergyNetwork, autograd_walk

HIDDEN = [(), (16,), (16, 8), (12, 8, 6)]


def network_of(width: int, hidden: tuple[int, ...], scale: float = 1.0) -> EnergyNetwork:
    torch.manual_seed(0)
    network = EnergyNetwork(width, hidden)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network


def aligner_of(width: int, hidden: tuple[int, ...], steps: int = 30, step_size: float = 0.1) -> EnergyAligner:
    aligner = EnergyAligner(width, hidden, steps, step_size)
    aligner.network.load_state_dict(network_of(width, hidden, scale=2.0).state_dict())
    return aligner


@pytest.fixture
def by_hand() -> EnergyNetwork:
    """score = 3 LeakyReLU(x + 2 y) + 1."""
    network = EnergyNetwork(2, (1,))
    values = {"layers.0.weight": [[1.0, 2.0]], "layers.0.bias": [0.0], "layers.1.weight": [[3.0]], "layers.1.bias": [1]}
    network.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})
    return network


def test_scores_worked_by_hand(by_hand):
    assert by_hand(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])).tolist() == pytest.approx([10.0, -0.8])


def test_a_walk_across_the_kink_worked_by_hand(by_hand):
    start = torch.tensor([[-0.1, 0.0]])
    # At x + 2 y = -0.1 the gradient is 0.2 * 3 * (1, 2); at 0.2, after one step of 0.1, it is 3 * (1, 2).
    assert by_hand.walk(start, 1, 0.1)[0].tolist() == pytest.approx([-0.04, 0.12])
    assert by_hand.walk(start, 2, 0.1)[0].tolist() == pytest.approx([0.26, 0.72])


@pytest.mark.parametrize(
    ("width", "hidden", "parameters"),
    [(32, (64,), 2177), (512, (64,), 32897), (64, (64, 64), 8385), (2048, (64,), 131201), (2048, (), 2049)],
)
def test_released_sizes(width, hidden, parameters):
    assert sum(p.numel() for p in EnergyNetwork(width, hidden).parameters()) == parameters


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("hidden", [*HIDDEN, (64,), (64, 64)])
def test_walk_equals_autograd(hidden, dtype, tolerance):
    network = network_of(256, hidden, scale=1.5).double()
    features = torch.randn(200, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    margin = distance_to_a_kink(network, features)
    clear = margin > 1e-5  # elsewhere float32's rounding decides which slope is taken, in either walk
    assert clear.float().mean() > 0.75
    network, features = network.to(dtype), features.to(dtype)
    walked, reference = network.walk(features, 30, 0.1), autograd_walk(network, features, 30, 0.1)
    error = (walked - reference).norm(dim=1) / reference.norm(dim=1)
    assert error[clear].max().item() < tolerance
    assert (reference - features).norm(dim=1).min().item() > 0.1


def distance_to_a_kink(network: EnergyNetwork, features: torch.Tensor) -> torch.Tensor:
    """(R,) the least distance from zero of any LeakyReLU's input along each row's walk."""
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)

    def look(_module, _inputs, output):
        torch.minimum(nearest, output.detach().abs().amin(dim=1), out=nearest)

    hooks = [layer.register_forward_hook(look) for layer in list(network.layers)[:-1]]
    autograd_walk(network, features, 30, 0.1)
    for hook in hooks:
        hook.remove()
    return nearest


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_walk_of_no_steps_or_no_length_is_the_identity(hidden):
    network, features = network_of(8, hidden), torch.randn(5, 8)
    assert torch.equal(network.walk(features, 0, 0.1), features)
    assert torch.equal(network.walk(features, 30, 0.0), features)


def test_without_hidden_layers_all_rows_move_by_one_translation():
    network, features = network_of(8, ()).double(), torch.randn(50, 8, dtype=torch.float64)
    shift = network.walk(features, 30, 0.1) - features
    torch.testing.assert_close(shift, (30 * 0.1 * network.layers[0].weight).expand(50, 8), rtol=1e-12, atol=1e-12)


def test_the_walk_raises_the_score_and_stays_in_the_first_layers_row_space():
    network, features = network_of(40, (6,), scale=2.0).double(), torch.randn(30, 40, dtype=torch.float64)
    walked = network.walk(features, 30, 0.1)
    assert (network(walked) > network(features)).all()
    assert torch.linalg.matrix_rank(torch.cat([network.layers[0].weight, walked - features])) == 6


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_row_does_not_depend_on_the_other_rows(hidden):
    aligner = aligner_of(32, hidden).double()
    features = torch.randn(40, 32, dtype=torch.float64)
    together, order = aligner(features), torch.randperm(40)
    alone = torch.cat([aligner(row[None]) for row in features])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(aligner(features[order]), together[order], rtol=1e-12, atol=1e-12)
    assert aligner(features[:0]).shape == (0, 32)


def test_alignment_works_without_autograd_and_carries_no_gradient():
    aligner, features = aligner_of(16, (8,)), torch.randn(6, 16)
    expected = aligner(features)
    with torch.no_grad():
        assert torch.equal(aligner(features), expected)
    with torch.inference_mode():
        assert torch.equal(aligner(features.clone()), expected)
        reference = autograd_walk(aligner.network, features.clone(), 30, 0.1)
    torch.testing.assert_close(reference, expected)
    assert not aligner(features.requires_grad_()).requires_grad


def test_autocast_does_not_coarsen_the_walk():
    aligner, features = aligner_of(64, (16,)), torch.randn(1000, 64).bfloat16()
    expected = aligner(features.float())
    aligner.threshold = aligner.network(features.float()).median()
    familiar = aligner.is_familiar(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(aligner(features.float()), expected)
        assert torch.equal(aligner(features), expected.bfloat16())
        assert torch.equal(aligner.is_familiar(features), familiar)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_it_can_be_exported_with_any_batch(hidden):
    aligner = aligner_of(16, hidden, steps=5)
    rows = {"features": {0: torch.export.Dim("rows")}}
    exported = torch.export.export(aligner, (torch.randn(3, 16),), dynamic_shapes=rows).module()
    for count in (2, 7):
        features = torch.randn(count, 16)
        torch.testing.assert_close(exported(features), aligner(features))


def test_copies_align_alike():
    aligner, features = aligner_of(16, (8,)), torch.randn(6, 16)
    for twin in (copy.deepcopy(aligner), pickle.loads(pickle.dumps(aligner))):
        assert torch.equal(twin(features), aligner(features))
        assert not any(parameter.requires_grad for parameter in twin.parameters())
