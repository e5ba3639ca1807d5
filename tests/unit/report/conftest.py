"""Run folders as training writes them, with invented numbers."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from incdet.evaluation.results import METRICS, run_results, write_result

SCALE = dict(zip(METRICS, (1.0, 0.7, 0.97, 0.68, 0.6, 0.99, 0.66), strict=True))


def class_ap(name: str, mean: float) -> float:
    """A class's AP around the mean of its group; 0 stays 0."""
    wobble = 1 + 0.15 * np.sin(sum(name.encode()))
    return float(min(1.0, mean * wobble))


def task_result(t, row, task_classes, block, train, extra) -> dict:
    """The content of the result.json of task ``t``, whose row of the matrix is given."""
    ap = {
        metric: {
            c: class_ap(c, SCALE[metric] * m) for group, m in zip(task_classes[:t], row, strict=True) for c in group
        }
        for metric in METRICS
    }
    groups = {}
    for metric, values in ap.items():
        new = [values[c] for c in task_classes[t - 1]]
        old = [v for c, v in values.items() if c not in task_classes[t - 1]]
        mean = {"old": float(np.mean(old)) if old else None, "new": float(np.mean(new))}
        groups[metric] = mean | {"seen": float(np.mean([*old, *new]))}
    return {
        "schema": 1,
        "task": t,
        "stamps": block["stamps"],
        "protocol": block,
        "ap": ap,
        "groups": groups,
        "by_task": {m: [float(np.mean([ap[m][c] for c in g])) for g in task_classes[:t]] for m in METRICS},
        "train": {"iterations": 500, "images": 800, **train},
        "evaluate": {"seconds": 9.2, "images": 400},
        "extra": extra,
    }


def write_run(
    folder: Path,
    methods=("pseudo_label",),
    name="",
    seed=0,
    matrix=((0.74,), (0.70, 0.88)),
    task_classes=(("circle", "cross"), ("ring", "star")),
    stamps=(),
    finished=None,
    extra=None,
    root=None,
    **protocol,
) -> Path:
    """Write one run folder; ``matrix`` is that of voc_area_50, ``finished`` the tasks done before a kill."""
    classes = [c for group in task_classes for c in group]
    block = {
        "split": "+".join(str(len(group)) for group in task_classes),
        "protocol": "class_split",
        "classes": classes,
        "class_order": "alphabetical",
        "class_order_hash": "abc123def456",
        "tasks": [list(group) for group in task_classes],
        "difficult": "keep",
        "train": {"name": "shapes_train", "fingerprint": "1" * 64},
        "test": {"name": "shapes_test", "fingerprint": "2" * 64},
        "held_out": False,
        "memory": {"images": 20, "bytes": 150_000},
        "seed": seed,
        "backend": "torchvision",
        "model": "resnet18-fpn",
        "commit": "0123456",
        "version": "0.1.0",
        "stamps": list(stamps),
    } | protocol
    tasks = [
        task_result(t, row, task_classes, block, {"seconds": 80.0 + seed}, (extra or {}) if t > 1 else {})
        for t, row in enumerate(matrix[: finished or len(matrix)], start=1)
    ]
    for result in tasks:
        task_folder = folder / f"task_{result['task']}"
        task_folder.mkdir(parents=True)
        (task_folder / "result.json").write_text(json.dumps(result))
    text = f"NAME: '{name}'\nMETHODS: {list(methods)}\nSEED: {seed}\n"
    text += f"DATASETS:\n  ROOT: {root}\n  TEST: [shapes_test]\n  TRAIN: [shapes_test]\n"
    (folder / "config.yaml").write_text(text)
    rows = [
        {"task": t, "iteration": i, "loss": 2.0 * 0.99**i / t + 0.1, "loss_cls": 0.1}
        for t in range(1, len(tasks) + 1)
        for i in range(20, 501, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished is None:
        write_result(folder / "results.json", run_results(name or " + ".join(methods), methods, block, tasks))
    return folder


@pytest.fixture
def make_run(tmp_path):
    """``make_run("a", seed=1, ...)`` writes a run folder and returns its path."""
    return lambda folder, **options: write_run(tmp_path / folder, **options)


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """``run_tool("report", ...)`` runs tools/report.py and returns its exit code, output and errors."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(Path(__file__).parents[3] / "tools" / f"{name}.py"), run_name="__main__")
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return run
