"""What ELI's aligner costs at prediction: one detector on the same images, with and without it, in turn.

The detector is ResNet-50-FPN with 1,000 proposals per image and random weights; the aligner has the released detection
settings (30 steps, 64 hidden units), also random: neither decides what the walk costs. The gate ``all`` walks every
region, ``predicted_old`` those that the detector takes for an old class.

    python benchmarks/eli_predict.py [--images 6] [--size 480] [--gate all] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch

from incdet.align.energy import EnergyAligner
from incdet.align.fit import PRESETS
from incdet.align.gates import GATES, AlignerChain, Link
from incdet.backends import build_detector
from incdet.config import get_cfg

CLASSES, OLD = 20, 10
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6, help="timed images of each side (default: %(default)s)")
    parser.add_argument("--size", type=int, default=480, help="short side in pixels (default: %(default)s)")
    parser.add_argument("--gate", choices=GATES, default="all", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = arguments.size, 2 * arguments.size
    detector = build_detector(cfg, CLASSES).eval()
    preset = PRESETS["detection"]
    aligner = EnergyAligner(cfg.MODEL.ROI_BOX_HEAD.FC_DIM, preset.hidden, preset.steps, preset.step_size)
    chain = partial(AlignerChain([Link(aligner, OLD)], GATES[arguments.gate]))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(WARM_UP + arguments.images):
        image = torch.rand(3, arguments.size, arguments.size * 4 // 3)
        for aligned in (True, False) if number % 2 else (False, True):
            detector.region_transform = chain if aligned else None
            began = time.perf_counter()
            detector.predict([image])
            seconds[aligned].append(time.perf_counter() - began)
    medians = {aligned: 1e3 * statistics.median(times[WARM_UP:]) for aligned, times in seconds.items()}
    print(f"{arguments.gate}: {medians[True]:.1f} ms per image with the aligner, {medians[False]:.1f} ms without")
    print(f"eli_predict {medians[True] / medians[False]:.3f}")


if __name__ == "__main__":
    main()
