"""A run's folder, read back: results, protocol, config and logs, also of a run that was killed half-way."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from incdet.errors import DataError
from incdet.evaluation.references import against_independent, against_joint
from incdet.files import read_json

SCHEMA = 1
RULES = ("voc_area_50", "voc_11point_50")  # a detector's AP by VOC's two rules
# What must agree before two numbers may stand in one table.
PROTOCOL_FIELDS = ("class_order_hash", "train", "test", "held_out", "proxy_of", "difficult", "backend", "model")
# Methods whose runs are no competitors but what the others are measured against.
REFERENCES = {("joint",): against_joint, ("independent",): against_independent}


@dataclass(frozen=True, eq=False)
class Run:
    """What one run left behind; absent parts are empty, never invented."""

    folder: Path
    label: str  # short name for tables and legends
    results: dict[str, Any]  # results.json, or the same shape put together from the tasks' result.json

    @property
    def protocol(self) -> dict[str, Any]:
        return self.results.get("protocol") or {}

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.results.get("methods") or ())

    @property
    def setting(self) -> str:
        """What runs of different seeds share: the NAME that the user gave, or else the methods."""
        return self.results.get("name") or " + ".join(self.methods) or "finetune"

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The result.json of each task that was finished."""
        return self.results.get("tasks") or []

    @property
    def classes(self) -> list[str]:
        return list(self.protocol.get("classes") or [])

    @property
    def task_classes(self) -> list[list[str]]:
        """The classes that each task of the stream teaches."""
        return [list(classes) for classes in self.protocol.get("tasks") or []]

    @property
    def learned(self) -> list[str]:
        """The classes of the finished tasks, in the order they were taught."""
        return [name for names in self.task_classes[: len(self.tasks)] for name in names]

    @property
    def finished(self) -> bool:
        return len(self.tasks) >= max(1, len(self.task_classes))

    @property
    def stamps(self) -> tuple[str, ...]:
        """Every stamp that the run or any of its tasks carries, e.g. ``oracle``."""
        sources = [self.protocol, self.results, *self.tasks]
        return tuple(sorted({stamp for source in sources for stamp in source.get("stamps") or []}))

    @property
    def title(self) -> str:
        """The label with every stamp behind it, for whatever shows the run: ``replay [ORACLE]``."""
        return self.label + "".join(f" [{stamp.upper()}]" for stamp in self.stamps)

    @property
    def group(self) -> tuple[str, str, str]:
        """Split, protocol and data: only runs that agree here belong in one table."""
        data = " / ".join(data_name(self.protocol.get(which)) for which in ("train", "test"))
        return str(self.protocol.get("split", "?")), str(self.protocol.get("protocol", "?")), data

    @property
    def train_seconds(self) -> float | None:
        seconds = [number((task.get("train") or {}).get("seconds")) for task in self.tasks]
        return sum(s for s in seconds if s is not None) if any(s is not None for s in seconds) else None

    @property
    def seconds_per_step(self) -> float | None:
        """Of the training loop in the tasks after the first; None before a second task."""
        trained = [task.get("train") or {} for task in self.tasks[1:]]
        seconds, steps = (sum(number(t.get(key)) or 0 for t in trained) for key in ("seconds", "iterations"))
        return seconds / steps if steps else None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The main metric, and the next one where there are two readings of it."""
        known = tuple(self.results.get("summary") or {})
        return RULES if not known or RULES[0] in known else known[:2]

    def score(self, metric: str, key: str) -> float | None:
        """One number of the summary, e.g. ``score("voc_area_50", "old")``; None where it is undefined."""
        return number(((self.results.get("summary") or {}).get(metric) or {}).get(key))

    def matrix(self, metric: str) -> list[list[float | None]]:
        """Row t: AP of each task's classes after learning task t."""
        return [[number(value) for value in row] for row in (self.results.get("matrix") or {}).get(metric) or []]

    def class_ap(self, metric: str) -> dict[str, float | None]:
        """AP of each class after the last finished task."""
        return {name: number(value) for name, value in ((self.tasks[-1].get("ap") or {}).get(metric) or {}).items()}

    def class_ap_when_learned(self, metric: str) -> dict[str, float | None]:
        """AP of each class right after the task that taught it."""
        learned: dict[str, float | None] = {}
        for task in self.tasks:
            for name, value in ((task.get("ap") or {}).get(metric) or {}).items():
                learned.setdefault(name, number(value))
        return learned

    def old_before_and_now(self, metric: str) -> tuple[float, float] | None:
        """Mean AP of the old classes when each had just been learned, and now; None before a second task."""
        new = set(self.task_classes[len(self.tasks) - 1]) if len(self.tasks) <= len(self.task_classes) else set()
        before, now = self.class_ap_when_learned(metric), self.class_ap(metric)
        pairs = [(before[name], value) for name, value in now.items() if name not in new]
        known = [(b, n) for b, n in pairs if b is not None and n is not None]
        if not known or len(self.tasks) < 2:
            return None
        return sum(b for b, _ in known) / len(known), sum(n for _, n in known) / len(known)

    def memory(self, key: str) -> float | None:
        """``images``, ``crops`` of objects or ``bytes`` kept as exemplars, or ``method_bytes`` beside the model."""
        memory = self.protocol.get("memory")
        return number(memory.get(key)) if isinstance(memory, dict) else None

    def config_text(self) -> str:
        path = self.folder / "config.yaml"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def config(self) -> dict[str, Any]:
        """The run's config as plain dictionaries; empty where there is none."""
        try:
            config = yaml.safe_load(self.config_text())
        except yaml.YAMLError as error:
            raise DataError(f"{self.folder / 'config.yaml'} is not readable YAML: {error}") from error
        return config if isinstance(config, dict) else {}

    def predictions_path(self, task: int) -> Path:
        return self.folder / f"task_{task}" / "predictions.json"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, give each run a label that no other has, and measure it against its references.

    A run's summary then has what ``evaluation.references`` computes, where a finished joint or independent run of the
    same seed, model and protocol is among the folders.

    Raises:
        IncdetError: no folder was given, or one holds no finished task, or a file in it is damaged.
    """
    if not folders:
        raise DataError("expected at least one run folder, but none came; name the folders that training wrote")
    runs = [read_run(folder) for folder in dict.fromkeys(Path(folder).resolve() for folder in folders)]
    counts = Counter(run.label for run in runs)
    clashing = {label: [run for run in runs if run.label == label] for label, count in counts.items() if count > 1}
    runs = [replace(run, label=_longer_label(run, clashing.get(run.label, []))) for run in runs]
    return [_beside_references(run, runs) for run in runs]


def read_run(folder: Path) -> Run:
    """Read one run folder; a killed run gives the tasks that it finished.

    Raises:
        IncdetError: see ``read_runs``.
    """
    if not folder.is_dir():
        raise DataError(f"expected a run folder, but {folder} is not a folder; give the OUTPUT_DIR of a training run")
    path = folder / "results.json"
    results = read_json(path, "the results of the run") if path.is_file() else _results_of_tasks(folder)
    if not isinstance(results, dict) or results.get("schema", SCHEMA) != SCHEMA:
        raise DataError(f"{path}: expected a results file of schema {SCHEMA}; it was written by another version")
    run = Run(folder, "", results)
    return replace(run, label=run.setting)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for index, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if index + 1 < len(lines):
                raise DataError(f"{path}, line {index + 1} is not JSON ({error}); remove that line") from error
    return [row for row in rows if isinstance(row, dict)]


def number(value: Any) -> float | None:
    """The value as a float, or None where it is absent, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def data_name(data: Any) -> str:
    """The name in a protocol's ``train`` or ``test`` entry."""
    return str(data.get("name", "?")) if isinstance(data, dict) else str(data or "?")


def _results_of_tasks(folder: Path) -> dict[str, Any]:
    """The shape of results.json from what a run has finished so far."""
    paths = sorted(folder.glob("task_*/result.json"), key=lambda path: int(path.parent.name.removeprefix("task_")))
    if not paths:
        raise DataError(
            f"{folder} holds neither results.json nor any task_<t>/result.json: no task of this run was finished; "
            "resume the run, or leave this folder out"
        )
    tasks = [read_json(path, "the result of a task") for path in paths]
    last = tasks[-1]
    protocol = last.get("protocol") or {}
    manifest = folder / "protocol.json"
    if not protocol and manifest.is_file():
        protocol = read_json(manifest, "the manifest of the split")
        protocol["tasks"] = [task["classes"] for task in protocol.get("tasks") or []]
    metrics = last.get("groups") or {}
    config = Run(folder, "", {}).config()
    return {
        "schema": last.get("schema", SCHEMA),
        "name": config.get("NAME"),
        "methods": config.get("METHODS") or [],
        "protocol": protocol,
        "tasks": tasks,
        "matrix": {metric: [(task.get("by_task") or {}).get(metric) or [] for task in tasks] for metric in metrics},
        "summary": {
            metric: {"old": groups.get("old"), "new": groups.get("new"), "all": groups.get("seen")}
            for metric, groups in metrics.items()
        },
    }


def _beside_references(run: Run, runs: Sequence[Run]) -> Run:
    """The run with what it is worth beside its references in its summary."""
    alike = [other for other in runs if other.finished and run.finished and _setup(other) == _setup(run)]
    summary = dict(run.results.get("summary") or {})
    for other in alike:
        if other.methods in REFERENCES:
            found = REFERENCES[other.methods](run.results, other.results)
            summary = {metric: {**scores, **found.get(metric, {})} for metric, scores in summary.items()}
    return replace(run, results={**run.results, "summary": summary})


def _setup(run: Run) -> str:
    """What a run shares with those that it may be measured against."""
    fields = [run.protocol.get(field) for field in (*PROTOCOL_FIELDS, "tasks", "protocol", "seed")]
    return json.dumps(fields, sort_keys=True)


def _longer_label(run: Run, namesakes: Sequence[Run]) -> str:
    """The label with whatever tells the run from its namesakes: the seed, or the folder's name, or its path."""
    if not namesakes:
        return run.label
    marks: tuple[Callable[[Run], str], ...] = (
        lambda one: f"seed {one.protocol.get('seed', '?')}",
        lambda one: one.folder.name,
        lambda one: str(one.folder),
    )
    mark = next(mark for mark in marks if len({mark(one) for one in namesakes}) == len(namesakes))
    return f"{run.label}, {mark(run)}"
