"""What a layer's basis costs by the smaller Gram matrix (incdet.subspace.grow_basis) against numpy's full SVD.

Both are given the same inputs of a layer in single precision, as a network makes them, and keep the leading directions
that hold a share of their energy. The inputs are Gaussian with standard deviations 1, 1/2, 1/3, ... along random axes.
The angle is the largest principal angle between the two spans, as far as the SVD's single precision lets it be known.

    python benchmarks/gpm_basis.py [--dimensions 4608] [--patches 100000] [--threads 2] [--cpu-time]

The SVD of the defaults needs 8 GB and, on two cores, tens of minutes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incdet.subspace import grow_basis, remove


def layer_inputs(count: int, width: int, seed: int = 0) -> Tensor:
    """Inputs (n, d) with the spectrum that the module describes."""
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    strength = 1 / torch.arange(1, width + 1)
    return (torch.randn(count, width, generator=generator) * strength) @ axes.T


def basis_by_svd(samples: Tensor, threshold: float) -> Tensor:
    """The basis (k, d) by the singular value decomposition of the inputs as columns, as GPM's release has them."""
    directions, strengths, _ = np.linalg.svd(samples.numpy().T, full_matrices=False)
    energies = strengths.astype(np.float64) ** 2
    count = int((energies.cumsum() - energies < threshold * energies.sum()).sum())
    return torch.from_numpy(directions[:, :count].T.copy())


def timed(clock: Callable[[], float], function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = clock()
    result = function(*arguments)
    return result, clock() - began


def largest_angle(basis: Tensor, other: Tensor) -> float:
    """Between the spans of two orthonormal bases (k, d) of one size, in degrees."""
    outside = torch.linalg.matrix_norm(remove(other.double(), basis.double()), ord=2)
    return math.degrees(math.asin(min(1.0, outside.item())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, default=4608, help="of the inputs: 512 channels times 3 x 3")
    parser.add_argument("--patches", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--threshold", type=float, default=0.97, help="share of the energy (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch's; numpy's are set by OMP_NUM_THREADS")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, for a machine that is busy")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    samples = layer_inputs(arguments.patches, arguments.dimensions)
    (basis,), ours = timed(
        clock, grow_basis, samples.new_zeros(1, 0, arguments.dimensions), samples[None], arguments.threshold
    )
    print(f"{arguments.patches} inputs of {arguments.dimensions} dimensions, {arguments.threshold:.0%} of their energy")
    print(f"grow_basis  {ours:10.2f} s, {len(basis)} directions", flush=True)
    reference, theirs = timed(clock, basis_by_svd, samples, arguments.threshold)
    print(f"numpy's SVD {theirs:10.2f} s, {len(reference)} directions")
    if len(basis) == len(reference):
        print(f"largest principal angle {largest_angle(basis, reference):.1e} degrees")
    print(f"gpm_basis {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
