"""Score a COCO results file: tools/evaluate.py predictions.json --data voc_2007_test --split 10+10."""

from __future__ import annotations

import argparse
import sys

from incdet.errors import IncdetError
from incdet.evaluation.cli import add_arguments, run


def main() -> int:
    parser = argparse.ArgumentParser(description="VOC and COCO AP per class, and for old and new classes.")
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except IncdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
