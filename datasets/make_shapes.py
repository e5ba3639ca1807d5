"""Draws the ``shapes`` set: ``python datasets/make_shapes.py``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.data.shapes import write_shapes
from incdet.errors import IncdetError


def main() -> int:
    parser = argparse.ArgumentParser(description="Draws the procedural 20-class set in VOC layout.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "shapes", help="a new folder")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s; recipes were chosen on 0")
    parser.add_argument("--train", type=int, default=1600, help="number of training images")
    parser.add_argument("--test", type=int, default=400, help="number of test images")
    parser.add_argument("--size", type=int, default=128, help="side of the square images in pixels")
    arguments = parser.parse_args()
    try:
        write_shapes(arguments.output, arguments.seed, arguments.train, arguments.test, arguments.size)
    except IncdetError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.output}: {arguments.train} training and {arguments.test} test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
