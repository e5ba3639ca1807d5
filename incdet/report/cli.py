"""``incdet report``: one page about one run or several."""

from __future__ import annotations

import argparse
from pathlib import Path

from incdet.report.html import write_report

EPILOG = """examples:
  one run:          incdet report output/shapes/10+10/finetune
  a comparison:     incdet report output/shapes/10+10/* --out comparison.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; several are compared")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the first run's folder)")
    parser.add_argument("--title")


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print where it is."""
    out = arguments.out or arguments.runs[0] / "report.html"
    write_report(arguments.runs, out, arguments.title)
    print(out)
