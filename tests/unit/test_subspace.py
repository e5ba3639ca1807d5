"""Subspaces of layer inputs: the identities that make a projected update harmless."""

import pytest
import torch
from torch import nn

from incdet.subspace import as_matrix, basis_of, input_patches, layers_of, leading_directions, remove

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
