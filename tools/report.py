"""Write one HTML page about one run or several: tools/report.py RUN... --out report.html."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.errors import IncdetError
from incdet.report.html import write_report


def main() -> int:
    parser = argparse.ArgumentParser(description="One self-contained page: numbers, plots, example images, protocol.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; several are compared")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the first run's folder)")
    parser.add_argument("--title")
    arguments = parser.parse_args()
    out = arguments.out or arguments.runs[0] / "report.html"
    try:
        write_report(arguments.runs, out, arguments.title)
    except IncdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
