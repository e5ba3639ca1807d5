"""Gradients that harm no other loss: the nearest vector whose product with given gradients is not negative.

A step along ``-g`` raises another loss, to first order, where ``<g, g_k> < 0``. GEM, A-GEM and PPI step along a vector
near ``g`` instead for which no such product is negative.

Shapes: P parameters, k constraints.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

CHUNK = 2**22  # parameters whose products are taken at once: what is doubled in precision stays small
ROUNDING = (
    1e-6  # a constraint shorter than this share of the gradient points anywhere: it is what rounding left of zero
)
NOISE = 1e-12  # eigenvalues of constraints of unit length below this are rounding: they repeat one another


def project_onto_cone(gradient: Tensor, constraints: Tensor, margin: float = 0.0, ridge: float = 0.0) -> Tensor:
    """The vector nearest to a gradient that has no negative product with any constraint (GEM, NeurIPS 2017, eq. 11).

    The answer is ``g + G^T v`` with ``v`` the least of ``v (G G^T + ridge I) v / 2 + (G g) v`` over ``v >= margin``. A
    margin above 0 is no projection: once any product is negative, every constraint is added at least that often.

    Args:
        gradient: g, (P,); it is returned itself where no product is negative.
        constraints: G, (k, P); rows may be zero or repeat one another. One that is nothing beside the gradient counts
            as zero, such as a distillation's where the student is still its teacher.
        margin: the least multiple of each constraint.
        ridge: on the diagonal, in the units of squared gradients; above 0 the constraints hold only nearly.
    """
    products = inner_products(torch.cat([gradient[None], constraints]))
    lengths = np.sqrt(np.diag(products))
    heard = lengths[1:] > ROUNDING * lengths[0]
    slopes, gram = products[0, 1:][heard], products[1:, 1:][np.ix_(heard, heard)]
    if (slopes >= 0).all():
        return gradient
    multiples = least_multiples(gram + ridge * np.eye(len(gram)), slopes, margin)
    return gradient + torch.from_numpy(multiples).to(gradient) @ constraints[torch.from_numpy(heard)]


def project_off(gradient: Tensor, constraint: Tensor) -> Tensor:
    """The cone projection for one constraint, in closed form (A-GEM, ICLR 2019, eq. 11).

    Args:
        gradient: g, (P,); it is returned itself where its product with the constraint is not negative.
        constraint: (P,).
    """
    products = inner_products(torch.stack([gradient, constraint]))
    if products[0, 1] >= 0:
        return gradient
    return gradient - float(products[0, 1] / products[1, 1]) * constraint


def inner_products(rows: Tensor) -> np.ndarray:
    """All inner products (n, n) of vectors (n, P), summed in double precision."""
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(CHUNK, dim=1):
        part = part.double()
        total += part @ part.T
    return total.cpu().numpy()


def least_multiples(gram: np.ndarray, slopes: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """The least ``v A v / 2 + b v`` over ``v >= margin``, by non-negative least squares (Lawson & Hanson).

    Args:
        gram: A, (k, k) symmetric and positive semidefinite.
        slopes: b, (k,) in the range of A.
        margin: the least of each entry.
    """
    # Constraints of very different lengths say the same: of unit length, none of them drowns in another's rounding.
    length = np.sqrt(np.diag(gram))
    length[length == 0] = 1
    values, vectors = np.linalg.eigh(gram / np.outer(length, length))
    kept = values > NOISE * len(values)
    root = np.sqrt(values[kept])
    # |R u + d|^2 / 2 differs from the objective in u = (v - margin) * length by a constant.
    target = -(vectors[:, kept].T @ ((slopes + gram.sum(axis=1) * margin) / length)) / root
    above, _ = nnls(root[:, None] * vectors[:, kept].T, target)
    return margin + above / length
