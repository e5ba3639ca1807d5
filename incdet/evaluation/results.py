"""The result files: ``result.json`` of one task and ``results.json`` of a run (schema: ``docs/architecture.md``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from incdet.data.records import DetectionDataset
from incdet.errors import DataError
from incdet.evaluation import incremental
from incdet.evaluation.coco_ap import coco_ap
from incdet.evaluation.incremental import PerClass
from incdet.evaluation.predictions import Predictions, judged
from incdet.evaluation.voc_ap import Convention, voc_ap
from incdet.files import read_json, write_json
from incdet.tasks import TaskSpec, TaskStream

SCHEMA = 1
METRICS = ("voc_area_50", "voc_area_75", "voc_11point_50", "voc_11point_75", "coco", "coco_50", "coco_75")

_TASK_PARTS = {"task": int, "stamps": list, "ap": dict, "groups": dict, "by_task": dict}
_RUN_PARTS = {"name": str, "methods": list, "protocol": dict, "tasks": list, "matrix": dict, "summary": dict}


def score(
    dataset: DetectionDataset, predictions: Predictions, classes: Sequence[str], convention: Convention = "devkit"
) -> dict[str, dict[str, float | None]]:
    """Every metric of ``METRICS`` per class, on all images of ``dataset``; None for a class without a test object.

    An image that was not labelled with a class (``ImageRecord.unlabelled``) plays no part in that class's AP.
    """
    predictions = judged(predictions, dataset)
    voc = voc_ap(dataset, predictions, classes, (0.5, 0.75), convention)
    coco = coco_ap(dataset, predictions, classes)
    columns = {
        "voc_area_50": voc.area[:, 0],
        "voc_area_75": voc.area[:, 1],
        "voc_11point_50": voc.eleven_point[:, 0],
        "voc_11point_75": voc.eleven_point[:, 1],
    }
    by_class = {
        metric: {name: None if np.isnan(ap) else float(ap) for name, ap in zip(classes, column, strict=True)}
        for metric, column in columns.items()
    }
    return by_class | {"coco": coco.ap, "coco_50": coco.ap50, "coco_75": coco.ap75}


def task_result(
    dataset: DetectionDataset,
    predictions: Predictions,
    stream: TaskStream,
    task: TaskSpec,
    *,
    convention: Convention = "devkit",
    scores: Mapping[str, Mapping[str, float | None]] | None = None,
    protocol: Mapping[str, Any] | None = None,
    stamps: Sequence[str] = (),
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``result.json`` after learning ``task``.

    Objects and detections are those of the seen classes; the images are **all** of ``dataset``. On a subset that is
    chosen by the labels a detector could not show its false positives on the other images, and rows of the task
    matrix would be measured on different sets.

    ``scores`` are given where they are not AP: a classifier's accuracy per metric and class.
    """
    ap = {name: dict(values) for name, values in (scores or score(dataset, predictions, task.seen, convention)).items()}
    learned = [step.new for step in stream.tasks[: task.index]]
    return {
        "schema": SCHEMA,
        "task": task.index,
        "stamps": list(stamps),
        "protocol": dict(protocol or {}),
        "voc_convention": convention,
        "ap": ap,
        "groups": {metric: incremental.group_means(values, task.old, task.new) for metric, values in ap.items()},
        "by_task": {metric: [incremental.mean_ap(values, names) for names in learned] for metric, values in ap.items()},
        "train": dict(train or {}),
        "evaluate": {"images": len(dataset), **(evaluate or {})},
        "extra": dict(extra or {}),
    }


def run_results(
    name: str,
    methods: Sequence[str],
    protocol: Mapping[str, Any],
    task_results: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of ``results.json``: the task matrix and the summary of the tasks learned so far.

    Args:
        name: what the run is called.
        methods: the methods it used.
        protocol: the protocol block; its ``tasks`` (class names of each task) are what the summary groups by.
        task_results: one ``result.json`` per learned task, in task order.

    Raises:
        DataError: the results are not those of tasks 1, 2, ...
    """
    numbers = [result["task"] for result in task_results]
    if not numbers or numbers != list(range(1, len(numbers) + 1)) or len(numbers) > len(protocol["tasks"]):
        raise DataError(
            f"the run '{name}' needs the results of tasks 1, 2, ... (at most {len(protocol['tasks'])}) in order; "
            f"got tasks {numbers}. Evaluate the missing tasks again"
        )
    tasks = [tuple(classes) for classes in protocol["tasks"][: len(numbers)]]
    metrics = list(task_results[0]["ap"])
    matrix = {metric: [list(result["by_task"][metric]) for result in task_results] for metric in metrics}
    summary = {
        metric: _summary([result["ap"][metric] for result in task_results], matrix[metric], tasks) for metric in metrics
    }
    return {
        "schema": SCHEMA,
        "name": name,
        "methods": list(methods),
        "stamps": sorted({stamp for result in task_results for stamp in result["stamps"]}),
        "protocol": dict(protocol),
        "tasks": [dict(result) for result in task_results],
        "matrix": matrix,
        "summary": summary,
    }


def write_result(path: str | Path, result: Mapping[str, Any]) -> None:
    """Writes a ``result.json`` or ``results.json`` in one step."""
    write_json(path, dict(result))


def read_task_result(path: str | Path) -> dict[str, Any]:
    """Reads a ``result.json``; IncdetError where it is cut short, of another schema, or not one."""
    return _read(path, "the result of a task", _TASK_PARTS)


def read_run_results(path: str | Path) -> dict[str, Any]:
    """Reads a ``results.json``; IncdetError where it is cut short, of another schema, or not one."""
    return _read(path, "the results of a run", _RUN_PARTS)


def _summary(
    steps: Sequence[PerClass], matrix: incremental.Matrix, tasks: Sequence[tuple[str, ...]]
) -> dict[str, float | None]:
    """What the run alone says; ``steps`` is the AP per class after each task."""
    last, seen = steps[-1], _seen_by_task(steps, tasks)
    groups = incremental.group_means(last, _join(tasks[:-1]), tasks[-1])
    return {
        "old": groups["old"],
        "new": groups["new"],
        "all": groups["seen"],
        "base_old": incremental.mean_ap(last, tasks[0]),
        "base_new": incremental.mean_ap(last, _join(tasks[1:])),
        "average_incremental": incremental.average_incremental(seen),
        "average_incremental_after_base": incremental.average_incremental(seen[1:]),
        "acc": incremental.average_accuracy(matrix),
        "forgetting": incremental.forgetting(matrix),
        "fpp": incremental.forgetting_percentage_points(matrix),
        "bwt": incremental.backward_transfer(matrix),
        "harmonic_mean": incremental.harmonic_mean(groups["old"], groups["new"]),
        "group_average": incremental.group_average(groups["old"], groups["new"]),
    }


def _seen_by_task(steps: Sequence[PerClass], tasks: Sequence[tuple[str, ...]]) -> list[float | None]:
    return [incremental.mean_ap(ap, _join(tasks[: step + 1])) for step, ap in enumerate(steps)]


def _join(tasks: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for classes in tasks for name in classes)


def _read(path: str | Path, what: str, parts: Mapping[str, type]) -> dict[str, Any]:
    content = read_json(path, what)
    if not isinstance(content, dict) or "schema" not in content:
        raise DataError(f"{path} must be {what}: a JSON object with 'schema'. Check the path")
    if content["schema"] != SCHEMA:
        raise DataError(
            f"{path} has schema {content['schema']!r}, this version of incdet reads {SCHEMA}. "
            "Evaluate again, or use the version that wrote it"
        )
    wrong = [key for key, kind in parts.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise DataError(f"{path} is not {what}: {', '.join(wrong)} missing or of another type. Evaluate again")
    return content
