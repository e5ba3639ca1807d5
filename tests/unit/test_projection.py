"""The projected gradient harms no constraint, and nothing nearer does."""

import itertools

import numpy as np
import pytest
import torch

from incdet import projection
from incdet.projection import inner_products, least_multiples, project_off, project_onto_cone


def drawn(seed: int, count: int, parameters: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient and constraints that disagree with it more often than not."""
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(parameters, generator=generator)
    return gradient, torch.randn(count, parameters, generator=generator) - 0.3 * gradient


def nearest(gradient: torch.Tensor, constraints: torch.Tensor) -> torch.Tensor:
    """The nearest point of the cone by trial: on each face it is an orthogonal projection; the nearest allowed wins."""
    g, rows = gradient.double(), constraints.double()
    found = []
    for size in range(len(rows) + 1):
        for face in itertools.combinations(range(len(rows)), size):
            active = rows[list(face)]
            point = g - active.T @ torch.linalg.pinv(active.T) @ g if face else g
            if (rows @ point >= -1e-9).all():
                found.append(point)
    return min(found, key=lambda point: (point - g).norm().item()).float()


def dual(gram: np.ndarray, slopes: np.ndarray, margin: float) -> np.ndarray:
    """The dual by trial: those at the margin stay there, the others are where the slope is zero."""
    found = []
    for free in itertools.product([False, True], repeat=len(gram)):
        rows = np.array(free)
        v = np.full(len(gram), margin)
        if rows.any():
            v[rows] = np.linalg.solve(gram[np.ix_(rows, rows)], -(slopes + gram[:, ~rows] @ v[~rows])[rows])
        if (v >= margin - 1e-12).all():
            found.append(v)
    return min(found, key=lambda v: v @ gram @ v / 2 + slopes @ v)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_nearest_vector_that_violates_nothing(count, seed):
    gradient, constraints = drawn(seed, count)
    projected = project_onto_cone(gradient, constraints)
    assert (constraints @ projected).min() >= -1e-5
    assert torch.allclose(projected, nearest(gradient, constraints), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("margin", "ridge"), [(0.5, 0.0), (0.5, 1e-3), (0.0, 0.1), (1.0, 1e-3)])
def test_the_dual_is_solved_exactly_with_margin_and_ridge(count, margin, ridge):
    for seed in range(5):
        gradient, constraints = drawn(seed, count)
        products = inner_products(torch.cat([gradient[None], constraints]))
        gram, slopes = products[1:, 1:] + ridge * np.eye(count), products[0, 1:]
        assert least_multiples(gram, slopes, margin) == pytest.approx(dual(gram, slopes, margin), abs=1e-9)


def test_by_hand_in_the_plane():
    """A quarter plane: one constraint is violated, then both, then none."""
    constraints = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    for given, expected in [((-3.0, 1.0), (0.0, 1.0)), ((-3.0, -1.0), (0.0, 0.0)), ((1.0, 1.0), (1.0, 1.0))]:
        assert project_onto_cone(torch.tensor(given), constraints).tolist() == pytest.approx(expected, abs=1e-6)
    # The margin adds every constraint at least so often, the one that agrees with the gradient too: v = (3, 1/2).
    found = project_onto_cone(torch.tensor([-3.0, 1.0]), constraints, margin=0.5)
    assert found.tolist() == pytest.approx([0.0, 2.0], abs=1e-6)
    # The ridge makes the multiple of the violated one 3 / (1 + 1).
    found = project_onto_cone(torch.tensor([-3.0, 1.0]), constraints, ridge=1.0)
    assert found.tolist() == pytest.approx([-1.5, 1.0], abs=1e-6)


def test_one_constraint_has_a_closed_form():
    for seed in range(10):
        gradient, constraints = drawn(seed, 1)
        assert torch.allclose(
            project_onto_cone(gradient, constraints), project_off(gradient, constraints[0]), atol=1e-6
        )
    by_hand = project_off(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 4.0]))
    assert by_hand.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_what_violates_nothing_is_returned_itself(margin):
    gradient = torch.tensor([1.0, 2.0])
    constraints = torch.tensor([[1.0, 0.0], [-2.0, 1.0]])  # the second is orthogonal to it
    assert project_onto_cone(gradient, constraints, margin, ridge=1e-3) is gradient
    assert project_off(gradient, constraints[1]) is gradient


def test_constraints_that_repeat_one_another_or_are_zero_change_nothing():
    gradient, constraints = drawn(0, 2)
    plain = project_onto_cone(gradient, constraints)
    repeated = torch.cat([constraints, 3 * constraints, torch.zeros_like(constraints)])
    assert not torch.equal(plain, gradient)
    assert torch.allclose(project_onto_cone(gradient, repeated), plain, atol=1e-5)
    assert project_onto_cone(gradient, torch.zeros_like(constraints)) is gradient
    assert project_off(gradient, torch.zeros_like(gradient)) is gradient


def test_opposite_constraints_leave_what_is_orthogonal_to_both():
    gradient = torch.tensor([1.0, 2.0, 3.0])
    constraints = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert project_onto_cone(gradient, constraints).tolist() == pytest.approx([0.0, 2.0, 3.0], abs=1e-6)


def test_a_short_constraint_binds_as_well_as_a_long_one():
    gradient, constraints = drawn(1, 3)
    lengths = torch.tensor([1e-4, 1.0, 1e6])[:, None]
    plain = project_onto_cone(gradient, constraints)
    assert torch.allclose(project_onto_cone(gradient, lengths * constraints), plain, atol=1e-5)


def test_what_rounding_left_of_zero_is_no_constraint():
    gradient = torch.tensor([1.0, -2.0])
    for constraint, bound in ((1e-7, False), (1e-4, True)):
        projected = project_onto_cone(gradient, torch.tensor([[1.0, 0.0], [0.0, constraint]]))
        assert projected.tolist() == pytest.approx([1.0, 0.0 if bound else -2.0], abs=1e-6)


def test_scaling_the_gradient_scales_the_answer():
    gradient, constraints = drawn(2, 3)
    answer = project_onto_cone(gradient, constraints, margin=0.0)
    assert torch.allclose(project_onto_cone(100 * gradient, constraints), 100 * answer, rtol=1e-4)


def test_inner_products_are_the_same_in_pieces(monkeypatch):
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    whole = inner_products(rows)
    assert whole == pytest.approx((rows.double() @ rows.double().T).numpy())
    monkeypatch.setattr(projection, "CHUNK", 4)
    assert inner_products(rows) == pytest.approx(whole)
