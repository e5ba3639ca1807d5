"""Writes handwritten digits as one folder per class: ``python datasets/make_digits.py``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.data.digits import bundled_digits, mnist_digits, write_digits
from incdet.errors import IncdetError


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes scikit-learn's 1,797 small digits, or MNIST, as images.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "digits", help="a new folder")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="of MNIST's four files, in place of small digits")
    arguments = parser.parse_args()
    try:
        digits = mnist_digits(arguments.mnist) if arguments.mnist else bundled_digits()
        write_digits(digits, arguments.output)
    except IncdetError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.output}: {len(digits.train_images)} training and {len(digits.test_images)} test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
