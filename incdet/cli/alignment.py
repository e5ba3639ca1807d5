"""``incdet alignment``: what each aligner behind each gate is worth to finished runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from incdet.align.fit import PRESETS
from incdet.config import get_cfg
from incdet.engine.alignment import FILE, check_study, study_alignment
from incdet.engine.launch import build_fabric
from incdet.engine.stream import Run
from incdet.errors import ConfigError
from incdet.report.alignment import alignment_table, read_study
from incdet.report.html import write_report

EPILOG = """examples:
  incdet alignment output/shapes/10+10/finetune
  incdet alignment output/shapes_table/10+10/*/seed_* --presets detection detection_10+10

Needs no training: the aligners are fitted from the models that the run left, on the images of its task. Writes
task_<t>/alignment.json, which the run's report shows; what is there already is not done again. Runs that are not tested
by their head (nearest means, mbpa, hat) are refused: there is no row without an aligner that would be their result.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--task", type=int, metavar="T", help="align task T with the one before it (default: the last)")
    parser.add_argument(
        "--presets", nargs="+", default=["detection"], choices=PRESETS, metavar="NAME", help="of the energy network"
    )
    parser.add_argument(
        "--background", type=int, default=4, metavar="N", help="proposals per image (default: %(default)s)"
    )
    parser.add_argument("--latents", type=int, default=20000, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure again what was measured before")


def run(arguments: argparse.Namespace) -> None:
    studies = []
    for folder in arguments.runs:
        cfg = get_cfg()
        if not (folder / "config.yaml").exists():
            raise ConfigError(f"{folder} holds no run: it has no config.yaml. Give the OUTPUT_DIR of a finished one.")
        cfg.merge_from_file(folder / "config.yaml")
        cfg.merge_from_list(["OUTPUT_DIR", str(folder)])
        fabric = build_fabric(cfg.SOLVER.PRECISION)
        fabric.launch()
        finished = Run(cfg, fabric, resume=True)
        index = arguments.task or len(finished.stream)
        check_study(finished, index)  # a study that an earlier version wrote is not shown either
        path = folder / f"task_{index}" / FILE
        if arguments.again or not path.exists():
            study_alignment(finished, index, arguments.presets, arguments.background, arguments.latents)
        studies.append(read_study(path))
        write_report([folder], folder / "report.html")
    print(alignment_table(studies))
    print("Pictures, and each class: report.html in the folders of the runs.")
