"""``incdet benchmark``: many configurations with many seeds, one table. Killed, it goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from incdet.cli.config import read_config
from incdet.engine.launch import build_fabric
from incdet.engine.stream import Run
from incdet.files import write_atomic
from incdet.report.html import write_report
from incdet.report.runs import read_runs
from incdet.report.table import FORMATS, benchmark_tables

EPILOG = """example:
  incdet benchmark configs/shapes/10+10/*.yaml --seeds 0 1 2 --out output/shapes_table

Runs lie in OUT/<split>/<configuration>/seed_<n>; the table and the report are rewritten after each.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files, one per row of the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs, the table and the report")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes for each run (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="overrides for all runs")


def run(arguments: argparse.Namespace) -> None:
    """Learn every configuration with every seed, first tasks shared, and keep the table up to date."""
    folders = []
    for seed in arguments.seeds:
        for file in arguments.configs:
            cfg = read_config(file, arguments.set)
            folders.append(arguments.out / cfg.TASKS.SPLIT / file.stem / f"seed_{seed}")
            cfg.merge_from_list([
                "OUTPUT_DIR", str(folders[-1]), "SEED", seed, "FIRST_TASK_CACHE", str(arguments.out / "first_tasks"),
            ])  # fmt: skip
            if (folders[-1] / "results.json").exists():
                continue
            fabric = build_fabric(cfg.SOLVER.PRECISION, arguments.num_gpus)
            fabric.launch()
            print(f"{cfg.TASKS.SPLIT} {file.stem}, seed {seed}", flush=True)
            Run(cfg, fabric, resume=True).learn()
            if fabric.is_global_zero:
                _write_table(folders, arguments.out)
    print((arguments.out / "table.md").read_text(encoding="utf-8"))


def _write_table(folders: list[Path], out: Path) -> None:
    write_atomic(out / "table.md", FORMATS["markdown"](benchmark_tables(read_runs(folders))))
    write_report(folders, out / "report.html")
