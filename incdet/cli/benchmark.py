"""``incdet benchmark``: many configurations with many seeds, one table. Killed, it goes on where it stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_fabric import Fabric

from incdet.cli.config import read_config
from incdet.config import CfgNode
from incdet.engine.launch import build_fabric
from incdet.engine.stream import Run
from incdet.errors import DivergenceError
from incdet.files import write_atomic
from incdet.methods import build_methods
from incdet.report.html import write_report
from incdet.report.runs import read_runs
from incdet.report.table import FORMATS, benchmark_tables

EPILOG = """example:
  incdet benchmark configs/shapes/10+10/*.yaml --seeds 0 1 2 --out output/shapes_table

Runs lie in OUT/<split>/<configuration>/seed_<n>. The table is rewritten after each, report.html after the last. A run
that diverges is left behind and named at the end. With joint and independent among the configurations, table.csv has
what is measured against them: gaps, Omega, RSD and RPD, FWT.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files, one per row of the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs, the table and the report")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes for each run (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="overrides for all runs")


def run(arguments: argparse.Namespace) -> int:
    """Learn every configuration with every seed, first tasks shared, and keep the table up to date.

    Returns:
        1 where a run has diverged, or else 0.
    """
    runs = [_configured(file, seed, arguments) for seed in arguments.seeds for file in arguments.configs]
    finished: list[Path] = []
    diverged: list[Path] = []
    for cfg in runs:
        fabric = build_fabric(cfg.SOLVER.PRECISION, arguments.num_gpus)
        fabric.launch()
        folder = Path(cfg.OUTPUT_DIR)
        learned = (folder / "results.json").exists() or _learned(cfg, fabric)
        (finished if learned else diverged).append(folder)
        if fabric.is_global_zero and finished:
            _write_tables(finished, arguments.out)
    if fabric.is_global_zero and finished:
        write_report(finished, arguments.out / "report.html")
        print((arguments.out / "table.md").read_text(encoding="utf-8"))
    if diverged:
        print(f"{len(diverged)} of {len(runs)} runs diverged and are in no table:", file=sys.stderr)
        print(*diverged, sep="\n", file=sys.stderr)
    return 1 if diverged else 0


def _configured(file: Path, seed: int, arguments: argparse.Namespace) -> CfgNode:
    """One run's configuration; what is wrong with any of them is said before the first begins."""
    cfg = read_config(file, arguments.set)
    folder = arguments.out / cfg.TASKS.SPLIT / file.stem / f"seed_{seed}"
    cfg.merge_from_list([
        "OUTPUT_DIR", str(folder), "SEED", seed, "FIRST_TASK_CACHE", str(arguments.out / "first_tasks"),
    ])  # fmt: skip
    build_methods(cfg)
    return cfg


def _learned(cfg: CfgNode, fabric: Fabric) -> bool:
    """Learn one run, or go on with it; False where it diverged."""
    if fabric.is_global_zero:
        print(f"{cfg.TASKS.SPLIT} {Path(cfg.OUTPUT_DIR).parent.name}, seed {cfg.SEED}", flush=True)
    try:
        Run(cfg, fabric, resume=True).learn()
    except DivergenceError as error:
        if fabric.world_size > 1:  # the other processes wait for this one
            raise
        print(f"{cfg.OUTPUT_DIR}: {error}", file=sys.stderr)
        return False
    return True


def _write_tables(folders: list[Path], out: Path) -> None:
    tables = benchmark_tables(read_runs(folders))
    write_atomic(out / "table.md", FORMATS["markdown"](tables))
    write_atomic(out / "table.csv", FORMATS["csv"](tables))
