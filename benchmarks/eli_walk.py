"""What aligning costs: ELI's walk in the hidden space against the same walk by autograd.

1,000 regions of width 2,048, 30 steps of 0.1, one hidden layer of 64: the released detection settings. Both sides run
in turn in one process, on the same features (non-negative, as after a ReLU) and the same network, and the medians are
compared. The released code walks by autograd. Autograd here is asked for the gradient of the features alone.

    python benchmarks/eli_walk.py [--rounds 20] [--threads 1]

The last line is ``eli_walk <ratio>``: how many times faster the hidden space is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from incdet.align.energy import EnergyNetwork, autograd_walk

WARM_UP = 2  # rounds that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=2048, help="of a region's feature (default: %(default)s)")
    parser.add_argument("--hidden", type=int, nargs="*", default=[64], help="widths (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--step-size", type=float, default=0.1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, for a machine that is busy")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = EnergyNetwork(arguments.width, arguments.hidden)
    features = torch.randn(arguments.regions, arguments.width).relu()
    walk = (arguments.steps, arguments.step_size)
    sides: dict[str, Callable[[], Tensor]] = {
        "autograd": lambda: autograd_walk(network, features, *walk),
        "hidden space": lambda: network.walk(features, *walk),
    }
    difference = largest_difference(sides["hidden space"](), sides["autograd"]())
    seconds = measure(sides, arguments.rounds, time.process_time if arguments.cpu_time else time.perf_counter)
    print(f"{arguments.regions} regions, width {arguments.width}, hidden {arguments.hidden}, {arguments.steps} steps")
    for side, values in seconds.items():
        median, *ends = (1e3 * value for value in (statistics.median(values), min(values), max(values)))
        print(f"{side:12s} {median:8.2f} ms   from {ends[0]:.2f} to {ends[1]:.2f}")
    print(f"largest difference of a row, relative to its length: {difference:.1e}")
    print(f"eli_walk {statistics.median(seconds['autograd']) / statistics.median(seconds['hidden space']):.1f}")


def measure(sides: dict[str, Callable[[], Tensor]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each side in each round; neither always follows the other."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + WARM_UP):
        for side in sides if number % 2 else reversed(sides):
            began = clock()
            sides[side]()
            seconds[side].append(clock() - began)
    return {side: values[WARM_UP:] for side, values in seconds.items()}


def largest_difference(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).norm(dim=1) / reference.norm(dim=1)).max().item()


if __name__ == "__main__":
    main()
