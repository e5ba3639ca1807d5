"""``incdet sweep``: a method's values, found without test images and without any label of a later task.

The first task alone is taught as a small stream of its own (TASKS.PROXY), and a held-out part of its images takes the
place of the test set: whoever tunes a method in earnest has nothing else when the first task ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

import incdet
from incdet.cli.config import read_config
from incdet.config import CfgNode, leaves
from incdet.config.space import Space, read_space, values_in
from incdet.engine.launch import build_fabric
from incdet.engine.protocol import git_commit
from incdet.engine.search import Search, Trial
from incdet.engine.stream import FREE_ON_RESUME, Run
from incdet.errors import ConfigError, DivergenceError
from incdet.files import write_atomic
from incdet.methods import problem_of
from incdet.report.plots import sweep_curve
from incdet.report.runs import read_run
from incdet.report.sweep import GROUPS, TrialRow, best_of, trials_csv, trials_markdown
from incdet.report.table import metric_name
from incdet.tasks import proxy_split

MAIN_METRIC = {"detection": "voc_area_50", "classification": "top1", "multi_label": "multi_label_ap"}
OBJECTIVES = (*GROUPS, "harmonic_mean", "group_average")
HELD_OUT = 0.2  # of the first task's images, where the configuration holds none out. Ours
EPILOG = """example:
  incdet sweep --config-file configs/shapes/10+10/pseudo_label.yaml --space space.yaml --trials 20 --out output/sweep

space.yaml, each key with a range or choices:
  METHOD.PSEUDO_LABEL.SCORE_ROI: {low: 0.3, high: 0.9}
  NEXT_TASKS.SOLVER.BASE_LR: {low: 1e-4, high: 1e-2, log: true}
  NEXT_TASKS.SOLVER.MAX_ITER: {choices: [250, 400]}

Writes best.yaml (to stand beside the configuration in a _BASE_), trials.md, trials.csv and trials.png, and each trial
as an ordinary run in OUT/trial_<n>. Killed, it goes on where it stopped; more --trials go on from there too.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", type=Path, required=True, metavar="FILE", help="the run that is to be tuned")
    parser.add_argument("--space", type=Path, required=True, metavar="FILE", help="what is searched, see below")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the trials and what they found")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="in all (default: %(default)s)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="all", help="of AP50 (area) or top-1 (default: all)")
    parser.add_argument("--split", help="of the first task's classes (default: in the ratio of TASKS.SPLIT)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides for all trials, last")


def run(arguments: argparse.Namespace) -> None:
    if arguments.trials < 1:
        raise ConfigError(f"--trials: expected at least 1, got {arguments.trials}.")
    cfg = proxy_config(read_config(arguments.config_file, arguments.opts), arguments.split, arguments.out)
    space = read_space(arguments.space, cfg)
    search = Search(arguments.out, space, cfg.SEED, _question(cfg, space, arguments.objective))
    own = values_in(cfg, space)
    if own is not None:  # what the configuration has already is the first to be tried
        search.propose(own)
    rows = [_row(trial, arguments) for trial in search.finished()]
    with tqdm(total=max(arguments.trials, len(rows)), initial=len(rows), desc="trials", unit="trial") as progress:
        while len(rows) < arguments.trials:
            trial = search.next_trial()
            score = _learn(trial, cfg, arguments)
            search.tell(trial, score)
            rows.append(_row(Trial(trial.number, trial.values, score), arguments))
            _write(rows, cfg, arguments)
            progress.update()
    _write(rows, cfg, arguments)
    print((arguments.out / "trials.md").read_text(encoding="utf-8"))
    if best_of(rows, arguments.objective) is None:
        raise ConfigError(f"All {len(rows)} trials diverged. Lower the learning rates in {arguments.space}.")
    print(f"The best values: {arguments.out / 'best.yaml'}")


def proxy_config(cfg: CfgNode, split: str | None, out: Path) -> CfgNode:
    """The configuration with its first task in the place of the whole problem."""
    held_out = cfg.DATASETS.HELD_OUT or HELD_OUT
    cfg.merge_from_list([
        "TASKS.PROXY", split or cfg.TASKS.PROXY or proxy_split(cfg.TASKS.SPLIT), "DATASETS.HELD_OUT", held_out,
        "FIRST_TASK_CACHE", str(out / "first_tasks"),
    ])  # fmt: skip
    return cfg


def _question(cfg: CfgNode, space: Space, objective: str) -> dict[str, Any]:
    """What must not change between two lives of a sweep."""
    searched = {f"space of {key}": str(allowed) for key, allowed in space.items()}
    return {k: v for k, v in leaves(cfg) if k not in FREE_ON_RESUME} | searched | {"--objective": objective}


def _learn(trial: Trial, cfg: CfgNode, arguments: argparse.Namespace) -> float | None:
    """Run the trial, or go on with it; None where it diverged."""
    cfg = cfg.clone()
    cfg.merge_from_other_cfg(trial.values, where=f"in trial {trial.number}")
    folder = _folder(trial.number, arguments)
    cfg.merge_from_list(["OUTPUT_DIR", str(folder)])
    fabric = build_fabric(cfg.SOLVER.PRECISION)
    fabric.launch()
    try:
        Run(cfg, fabric, resume=True).learn()
    except DivergenceError as error:
        tqdm.write(f"trial {trial.number} diverged: {error}", file=sys.stderr)
        return None
    finished = read_run(folder)
    score = finished.score(finished.metrics[0], arguments.objective)
    if score is None:
        raise ConfigError(
            f"--objective {arguments.objective} is undefined: in the proxy {cfg.TASKS.PROXY} it has no class, or no "
            "held-out object. Take another objective, or raise DATASETS.HELD_OUT."
        )
    return score


def _row(trial: Trial, arguments: argparse.Namespace) -> TrialRow:
    scores: dict[str, float | None] = dict.fromkeys([*GROUPS, arguments.objective])
    if trial.score is not None:
        finished = read_run(_folder(trial.number, arguments))
        scores = {name: finished.score(finished.metrics[0], name) for name in scores}
        scores[arguments.objective] = trial.score
    return TrialRow(trial.number, trial.values, scores)


def _folder(number: int, arguments: argparse.Namespace) -> Path:
    return arguments.out / f"trial_{number}"


def _write(rows: list[TrialRow], cfg: CfgNode, arguments: argparse.Namespace) -> None:
    out, objective = arguments.out, arguments.objective
    label = f"{objective} {metric_name(MAIN_METRIC[problem_of(cfg)])}"
    write_atomic(out / "trials.md", trials_markdown(rows, objective))
    write_atomic(out / "trials.csv", trials_csv(rows, objective))
    write_atomic(out / "trials.png", sweep_curve({row.number: row.scores[objective] for row in rows}, label))
    best = best_of(rows, objective)
    if best is not None:
        write_atomic(out / "best.yaml", best_yaml(best, len(rows), label, cfg, arguments))


def best_yaml(best: TrialRow, trials: int, label: str, cfg: CfgNode, arguments: argparse.Namespace) -> str:
    """The best values alone, and how they were found."""
    score = 100 * (best.scores[arguments.objective] or 0)
    lines = (
        f"Found by incdet sweep, version {incdet.__version__}, commit {git_commit() or 'unknown'}, seed {cfg.SEED}:",
        f"trial {best.number}, the best of {trials} by {label}, {score:.1f} %.",
        f"Taught: the first task of {cfg.TASKS.SPLIT}, as {cfg.TASKS.PROXY}.",
        f"Tested: on {100 * cfg.DATASETS.HELD_OUT:g} % of its images, held out.",
        "Neither a test image nor a label of a later task was seen.",
        f"The other values: {arguments.config_file} {' '.join(arguments.opts)}".rstrip(),
        "To use both, name that file and then this one in a _BASE_.",
    )
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(_nested(best.values), sort_keys=False)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
