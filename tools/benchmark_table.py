"""Put the results of many runs into one table: tools/benchmark_table.py runs/*/ --format latex."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.errors import IncdetError
from incdet.report.runs import read_runs
from incdet.report.table import FORMATS, benchmark_tables


def main() -> int:
    parser = argparse.ArgumentParser(description="Mean and spread over seeds, for every combination of methods.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folders (with results.json)")
    parser.add_argument("--metric", default="voc_area_50", help="the main metric (default: %(default)s)")
    parser.add_argument("--format", choices=sorted(FORMATS), default="markdown")
    parser.add_argument("--out", type=Path, help="write here instead of to the terminal")
    arguments = parser.parse_args()
    try:
        tables = benchmark_tables(read_runs(arguments.folders), arguments.metric)
    except IncdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for warning in (warning for table in tables for warning in table.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    text = FORMATS[arguments.format](tables)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
