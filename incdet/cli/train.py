"""``incdet train``: detectron2's command line for a run over all tasks of a split."""

from __future__ import annotations

import argparse
from pathlib import Path

from incdet.cli.config import read_config
from incdet.engine.launch import build_fabric
from incdet.engine.stream import Run
from incdet.report.html import write_report
from incdet.report.terminal import print_summary

EPILOG = """examples:
  one process:      incdet train --config-file configs/shapes/10+10/pseudo_label.yaml
  other values:     incdet train --config-file ... SOLVER.BASE_LR 0.005 SEED 1 OUTPUT_DIR output/second
  go on:            incdet train --config-file ... --resume
  test again:       incdet train --config-file ... --eval-only
  8 GPUs:           incdet train --config-file ... --num-gpus 8
  2 machines:       incdet train --config-file ... --num-gpus 8 --num-machines 2 --machine-rank 0 \\
                      --dist-url tcp://<first machine>:29500     (and --machine-rank 1 on the second)
  torchrun:         torchrun --nproc-per-node 8 tools/train_net.py --config-file ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="a YAML file; see configs/")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="test the models in OUTPUT_DIR again")
    parser.add_argument("--task", type=int, metavar="T", help="stop after task T (counted from 1)")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (default: %(default)s)")
    parser.add_argument("--num-machines", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--machine-rank", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--dist-url", metavar="tcp://HOST:PORT", help="of the first machine")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, last")


def run(arguments: argparse.Namespace) -> None:
    cfg = read_config(arguments.config_file, arguments.opts)
    fabric = build_fabric(
        cfg.SOLVER.PRECISION,
        arguments.num_gpus,
        arguments.num_machines,
        arguments.machine_rank,
        arguments.dist_url,
    )
    fabric.launch()
    stream_run = Run(cfg, fabric, resume=arguments.resume or arguments.eval_only)
    results = stream_run.evaluate(arguments.task) if arguments.eval_only else stream_run.learn(arguments.task)
    if fabric.is_global_zero:
        print_summary(results)
        page = stream_run.folder / "report.html"
        write_report([stream_run.folder], page)
        print(f"report: {page}")
