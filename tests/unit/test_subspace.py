"""Subspaces of layer inputs: the identities that make a projected update harmless."""

import math

import pytest
import torch
from torch import nn

from incdet.subspace import (
    as_matrix,
    basis_of,
    free_share,
    grow_basis,
    input_patches,
    layers_of,
    leading_directions,
    projected,
    remove,
    watched,
)

EVERYTHING = 10**6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(count: int, width: int, rank: int, seed: int = 0) -> torch.Tensor:
    drawn = generator(seed)
    return torch.randn(count, rank, generator=drawn, dtype=torch.float64) @ torch.randn(
        rank, width, generator=drawn, dtype=torch.float64
    )


def moment(rows: torch.Tensor) -> torch.Tensor:
    return (rows.T @ rows / len(rows))[None]


# ---------------------------------------------------------------------- patches

CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, bias=False),
    "padded": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "oblong": nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 1), bias=False),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding=2, bias=False),
    "same": nn.Conv2d(4, 6, 3, padding="same", bias=False),
    "mirrored": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
    "depthwise": nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False),
    "pointwise": nn.Conv2d(4, 6, 1, bias=False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_times_patches_are_the_convolution(name):
    layer, x = CONVOLUTIONS[name], torch.randn(2, 4, 7, 9, generator=generator())
    expected = layer(x)  # (N, O, h, w)
    patches = input_patches(layer, x, EVERYTHING, generator())
    outputs = patches @ as_matrix(layer, layer.weight).transpose(1, 2)  # (g, N * h * w, O / g)
    outputs = outputs.transpose(0, 1).reshape(2, *expected.shape[2:], -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(outputs, expected)


def test_weights_times_inputs_are_the_linear_layer():
    layer, x = nn.Linear(5, 3, bias=False), torch.randn(2, 4, 5, generator=generator())
    (rows,) = input_patches(layer, x, EVERYTHING, generator())
    torch.testing.assert_close(rows @ as_matrix(layer, layer.weight)[0].T, layer(x).view(8, 3))


def test_some_patches_are_drawn_from_all():
    layer, x = CONVOLUTIONS["padded"], torch.randn(2, 4, 7, 9, generator=generator())
    everything = {tuple(row.tolist()) for row in input_patches(layer, x, EVERYTHING, generator())[0]}
    some = input_patches(layer, x, 20, generator())[0]
    assert some.shape == (20, 36)
    assert {tuple(row.tolist()) for row in some} <= everything
    assert torch.equal(some, input_patches(layer, x, 20, generator())[0])
    assert not torch.equal(some, input_patches(layer, x, 20, generator(1))[0])


def test_layers_that_do_not_train_are_left_out():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 1))
    network[0].requires_grad_(False)
    assert [name for name, _ in layers_of(network)] == ["3"]


# ---------------------------------------------------------------------- second moments


def test_the_fewest_directions_that_hold_the_energy():
    (directions,) = leading_directions(torch.diag(torch.tensor([1.0, 6.0, 3.0]))[None], 0.9)
    torch.testing.assert_close(directions.abs(), torch.tensor([[0, 6**0.5, 0], [0, 0, 3**0.5]]))
    assert leading_directions(torch.diag(torch.tensor([1.0, 6.0, 3.0]))[None], 0.91).shape[1] == 3
    assert leading_directions(torch.diag(torch.tensor([1.0, 6.0, 3.0]))[None], 0.6).shape[1] == 1


def test_all_energy_gives_the_moment_back_and_its_rank():
    rows = samples(50, 8, rank=3)
    directions = leading_directions(moment(rows), 1.0)
    assert directions.shape == (1, 3, 8)
    torch.testing.assert_close(directions.transpose(1, 2) @ directions, moment(rows))
    basis = basis_of(directions)[0]
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))


def test_each_group_has_its_own_number_of_directions():
    moments = torch.stack(
        [torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([2.0, 2.0])), torch.zeros(2, 2)]
    )
    basis = basis_of(leading_directions(moments, 0.99))
    assert basis.shape == (3, 2, 2)
    assert basis.square().sum(-1).sum(-1).tolist() == pytest.approx([1, 2, 0])


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_what_a_projected_update_does_to_old_outputs_is_bounded_by_the_energy_left_out(energy):
    rows = samples(200, 12, rank=12)
    update = torch.randn(5, 12, generator=generator(), dtype=torch.float64)
    left = remove(update, basis_of(leading_directions(moment(rows), energy))[0])
    change = (rows @ left.T).square().sum(dim=1).mean()
    assert change <= (1 - energy) * rows.square().sum(dim=1).mean() * update.square().sum()
    assert change < (rows @ update.T).square().sum(dim=1).mean()


# ---------------------------------------------------------------------- GPM


def nothing(width: int, groups: int = 1) -> torch.Tensor:
    """The basis to begin with."""
    return torch.zeros(groups, 0, width, dtype=torch.float64)


@pytest.mark.parametrize("count", [5, 40], ids=["fewer samples than inputs", "more"])
def test_a_grown_basis_is_orthonormal_and_keeps_its_first_rows(count):
    first = grow_basis(nothing(16), samples(count, 16, rank=4)[None], 0.95)
    second = grow_basis(first, samples(count, 16, rank=4, seed=1)[None], 0.95)
    assert 0 < first.shape[1] < second.shape[1]
    assert torch.equal(second[:, : first.shape[1]], first)
    torch.testing.assert_close(second[0] @ second[0].T, torch.eye(second.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("count", [5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_of_one_takes_the_whole_rank_and_no_more(count, dtype):
    rows = samples(count, 16, rank=4).to(dtype)[None]
    basis = grow_basis(nothing(16).to(dtype), rows, 1.0)
    assert basis.shape == (1, 4, 16)
    assert basis.dtype == dtype
    rounding = torch.finfo(dtype).eps * rows.abs().max().item()
    torch.testing.assert_close(remove(rows, basis), torch.zeros_like(rows), atol=20 * rounding, rtol=0)
    assert torch.equal(grow_basis(basis, rows, 1.0), basis)


@pytest.mark.parametrize("count", [6, 40], ids=["fewer samples than inputs", "more"])
def test_directions_of_hardly_any_energy_are_orthonormal_too(count):
    strength = torch.logspace(0, -4, 5, dtype=torch.float64)  # energies down to 1e-8 of the largest
    rows = (torch.randn(count, 5, generator=generator(), dtype=torch.float64) * strength) @ samples(5, 16, rank=5)
    first = grow_basis(nothing(16), rows[None], 0.9)
    (basis,) = grow_basis(first, rows[None], 1.0)
    assert len(basis) == 5
    torch.testing.assert_close(basis @ basis.T, torch.eye(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_both_gram_matrices_and_the_singular_value_decomposition_span_the_same():
    rows = samples(30, 16, rank=16)
    threshold = 0.9
    _, strengths, directions = torch.linalg.svd(rows, full_matrices=False)
    energies = strengths.square()
    count = int((energies.cumsum(0) - energies < threshold * energies.sum()).sum())
    expected = directions[:count].T @ directions[:count]
    wide = torch.cat([rows, torch.zeros(30, 24, dtype=torch.float64)], dim=1)  # more inputs than samples
    for given in (rows, wide):
        (basis,) = grow_basis(nothing(given.shape[1]), given[None], threshold)
        torch.testing.assert_close((basis.T @ basis)[:16, :16], expected)


def test_samples_in_several_blocks_and_strips_are_as_good_as_in_one(monkeypatch):
    rows = torch.stack([samples(40, 11, rank=4), samples(40, 11, rank=6, seed=1)])
    expected = grow_basis(nothing(11, groups=2), rows, 0.95)
    monkeypatch.setattr("incdet.subspace.BLOCK", 7)
    monkeypatch.setattr("incdet.subspace.STRIP", 3)
    basis = grow_basis(nothing(11, groups=2), rows, 0.95)
    torch.testing.assert_close(basis.transpose(1, 2) @ basis, expected.transpose(1, 2) @ expected)


@pytest.mark.parametrize(("threshold", "degrees"), [(0.9, 1e-3), (1.0, 1e-5)])
def test_of_single_precision_the_directions_that_count_are_as_in_double(threshold, degrees):
    """Where every direction counts, the products are in double precision too."""
    strength = torch.logspace(0, -3, 16, dtype=torch.float64)
    rows = (torch.randn(400, 16, generator=generator(), dtype=torch.float64) * strength).float()[None]
    found, expected = (grow_basis(nothing(16).to(one), one, threshold)[0].double() for one in (rows, rows.double()))
    assert len(found) == len(expected)
    outside = torch.linalg.matrix_norm(remove(found, expected), ord=2).item()
    assert math.degrees(outside) < degrees


def test_growing_stops_at_the_threshold_of_the_whole_energy():
    axes = torch.eye(4, dtype=torch.float64)[None]
    rows = axes * torch.tensor([6.0, 3.0, 1.5, 1.0], dtype=torch.float64).sqrt()[:, None]  # energies; 11.5 in all
    assert grow_basis(axes[:, :0], rows, 0.5)[0].abs().tolist() == [axes[0, 0].tolist()]
    assert grow_basis(axes[:, :0], rows, 0.6)[0].abs().tolist() == axes[0, :2].tolist()
    # The basis holds 3 of 11.5 already: 6 more make 78 %, and that is enough for 75 %.
    assert grow_basis(axes[:, 1:2], rows, 0.75)[0].abs().tolist() == [axes[0, 1].tolist(), axes[0, 0].tolist()]
    assert grow_basis(axes[:, 1:2], rows, 0.26).shape[1] == 1


def test_each_group_grows_by_itself():
    rows = torch.stack([samples(9, 6, rank=1), samples(9, 6, rank=3), torch.zeros(9, 6, dtype=torch.float64)])
    basis = grow_basis(nothing(6, groups=3), rows, 1.0)
    assert basis.square().sum(-1).round(decimals=9).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    more = grow_basis(basis, rows.flip(0), 1.0)
    assert more.square().sum((1, 2)).tolist() == pytest.approx([1, 3, 1])
    torch.testing.assert_close(remove(rows, more), torch.zeros_like(rows))
    assert free_share([more]) == pytest.approx(1 - 5 / 18)
    assert free_share([more, nothing(2)]) == pytest.approx(1 - 5 / 20)


def test_removing_twice_is_removing_once_and_protected_inputs_see_nothing():
    rows = samples(30, 10, rank=3)
    basis = basis_of(leading_directions(moment(rows), 1.0))[0]
    update = torch.randn(4, 10, generator=generator(), dtype=torch.float64)
    left = remove(update, basis)
    assert left.norm() > 0.1
    torch.testing.assert_close(remove(left, basis), left)
    torch.testing.assert_close(left @ rows.T, torch.zeros(4, 30, dtype=torch.float64))


def test_a_projected_step_leaves_a_linear_networks_old_outputs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 6, bias=False), nn.Linear(6, 2, bias=False)).double()
    old, new = samples(20, 10, rank=3), samples(20, 10, rank=10, seed=1)
    before, learned = network(old).detach(), network(new).detach()
    hidden = network[0](old).detach()
    bases = [basis_of(leading_directions(moment(rows), 1.0))[0] for rows in (old, hidden)]
    for _ in range(5):
        network.zero_grad()
        network(new).square().sum().backward()
        with torch.no_grad():
            for layer, basis in zip(network, bases, strict=True):
                layer.weight -= 1e-4 * remove(layer.weight.grad, basis)
    torch.testing.assert_close(network(old), before)
    assert (network(new) - learned).abs().max() > 0.01


def test_the_change_of_a_weight_is_projected_and_all_else_changes_as_it_does():
    layer = nn.Conv2d(2, 3, 2)
    basis = grow_basis(nothing(8), samples(5, 8, rank=2)[None], 1.0).float()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    update = torch.randn(weight.shape, generator=generator())
    with torch.no_grad(), projected(dict(layer.named_parameters(prefix="conv")), {"conv": basis, "other": basis}):
        layer.weight += update
        layer.bias += 1
    expected = remove(update.view(1, 3, 8), basis).view_as(weight)
    torch.testing.assert_close(layer.weight.detach() - weight, expected)
    assert (expected - update).abs().max() > 0.1
    assert torch.equal(layer.bias.detach(), bias + 1)


def test_layers_that_train_are_watched_as_long_as_asked():
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    seen = []
    x = torch.ones(4, 3)
    network[0].requires_grad_(False)
    with watched(network, lambda name, layer, given: seen.append((name, layer, given))):
        network(x)
    network(x)
    ((name, layer, given),) = seen
    assert (name, layer) == ("2", network[2])
    assert torch.equal(given, network[:2](x))
