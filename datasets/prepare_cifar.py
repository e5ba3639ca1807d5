"""Writes CIFAR-100 as one folder per class: ``python datasets/prepare_cifar.py cifar-100-binary.tar.gz``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.data.cifar import write_cifar
from incdet.errors import IncdetError


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the images of CIFAR-100's binary version, a folder per class.")
    parser.add_argument("source", type=Path, help="cifar-100-binary.tar.gz, or the folder in it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "cifar100", help="a new folder")
    arguments = parser.parse_args()
    try:
        count = write_cifar(arguments.source, arguments.output)
    except IncdetError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.output}: {count} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
