"""Show what each task of a split sees and what is hidden from it, or check a data set for defects.

Usage: python tools/inspect_split.py --data shapes_train --split 10+10 [--protocol loco] [--out DIR]
       python tools/inspect_split.py --data shapes_train --check
"""

from __future__ import annotations

import argparse
import sys

from incdet.errors import IncdetError
from incdet.report.inspect import add_arguments, run


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 when all is well, 1 when the check found defects, 2 when data or split cannot be used."""
    parser = argparse.ArgumentParser(
        description="What each task of a split sees and what is hidden from it, or the defects of a data set."
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except IncdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
