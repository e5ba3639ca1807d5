"""``incdet demo``: a detector learns ten shapes, then ten more; it forgets, and then it does not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from incdet.cli.config import read_config, shipped_config
from incdet.data.shapes import write_shapes
from incdet.engine.launch import build_fabric
from incdet.engine.stream import Run
from incdet.files import write_json
from incdet.report.html import write_report

DEFAULT_METHOD = "pseudo_label"

EPILOG = """examples:
  the demo:         incdet demo
  other methods:    incdet demo --methods finetune ilod replay
  shorter:          incdet demo SOLVER.MAX_ITER 300
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("output/demo"), help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, default=Path("datasets"), help="drawn here if absent (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--methods", nargs="+", default=["finetune", DEFAULT_METHOD], help="default: %(default)s")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of configs/shapes")


def run(arguments: argparse.Namespace) -> None:
    if not (arguments.data / "shapes" / "ImageSets").exists():
        print("Drawing 2,000 pictures of 20 shapes")
        write_shapes(arguments.data / "shapes")
    fabric = build_fabric()
    fabric.launch()
    figures: dict[str, dict[str, float | None]] = {}
    folders = []
    for method in arguments.methods:
        cfg = read_config(demo_config(method), arguments.opts)
        folders.append(arguments.out / method)
        cfg.merge_from_list([
            "OUTPUT_DIR", str(folders[-1]), "DATASETS.ROOT", str(arguments.data), "SEED", arguments.seed,
            "FIRST_TASK_CACHE", str(arguments.out / "first_tasks"),
        ])  # fmt: skip
        print(f"\n{method}: learn ten shapes, then ten more")
        figures[method] = demo_figures(Run(cfg, fabric, resume=True).learn())
        write_json(arguments.out / "results.json", figures)
    print_comparison(figures)
    page = arguments.out / "report.html"
    write_report(folders, page, "Learning ten new shapes")
    print(f"report: {page}")


def demo_config(method: str) -> Path:
    """The configuration of a method on ``shapes``."""
    return shipped_config(f"shapes/10+10/{method}.yaml")


def demo_figures(results: dict[str, Any]) -> dict[str, float | None]:
    """The four figures of a run: AP50 (area) from 0 to 1."""
    summary = results["summary"]["voc_area_50"]
    return {
        "base_old_ap50": results["matrix"]["voc_area_50"][0][0],
        "old_ap50": summary["old"],
        "new_ap50": summary["new"],
        "all_ap50": summary["all"],
    }


def print_comparison(figures: dict[str, dict[str, float | None]]) -> None:
    """One line per run."""
    print("\nAP50 in percent, on 400 test pictures")
    print(f"{'':16}{'first ten,':>12}{'first ten,':>12}{'second ten':>12}{'all twenty':>12}")
    print(f"{'':16}{'before':>12}{'after':>12}")
    for name, values in figures.items():
        print(f"{name:16}" + "".join(f"{100 * value:>12.1f}" for value in values.values() if value is not None))
