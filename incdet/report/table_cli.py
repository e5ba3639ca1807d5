"""``incdet table``: the results of many runs as one table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.files import write_atomic
from incdet.report.runs import read_runs
from incdet.report.table import FORMATS, benchmark_tables

EPILOG = """examples:
  many runs:        incdet table output/shapes/10+10/*
  for a paper:      incdet table output/shapes/10+10/* --format latex --out table.tex
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folders (with results.json)")
    parser.add_argument("--metric", help="the main metric (default: voc_area_50, top1 or multi_label_ap)")
    parser.add_argument("--format", choices=sorted(FORMATS), default="markdown")
    parser.add_argument("--out", type=Path, help="write here instead of to the terminal")


def run(arguments: argparse.Namespace) -> None:
    """Mean and spread over seeds for every combination of methods; warnings go to stderr."""
    tables = benchmark_tables(read_runs(arguments.folders), arguments.metric)
    for warning in (warning for table in tables for warning in table.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    text = FORMATS[arguments.format](tables)
    if arguments.out:
        write_atomic(arguments.out, text)
    else:
        print(text)
