"""Writes handwritten digits as one folder per class: ``python datasets/make_digits.py``.

With ``--permutations 10`` ten copies whose pixels are in different orders, for ``permuted_digits_train``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.data.digits import bundled_digits, mnist_digits, write_digits, write_permuted_digits
from incdet.errors import IncdetError


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes scikit-learn's 1,797 small digits, or MNIST, as images.")
    parser.add_argument("--output", type=Path, help="a new folder (default: beside this file)")
    parser.add_argument("--permutations", type=int, metavar="N", help="this many copies, each with its pixels permuted")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="of MNIST's four files, in place of small digits")
    arguments = parser.parse_args()
    if arguments.permutations is not None and arguments.permutations < 1:
        parser.error(f"--permutations: expected at least 1, got {arguments.permutations}")
    name = "permuted_digits" if arguments.permutations else "digits"
    output = arguments.output or Path(__file__).parent / name
    try:
        digits = mnist_digits(arguments.mnist) if arguments.mnist else bundled_digits()
        if arguments.permutations:
            write_permuted_digits(digits, output, arguments.permutations)
        else:
            write_digits(digits, output)
    except IncdetError as error:
        print(error, file=sys.stderr)
        return 1
    copies = arguments.permutations or 1
    train, test = copies * len(digits.train_images), copies * len(digits.test_images)
    print(f"{output}: {train} training and {test} test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
