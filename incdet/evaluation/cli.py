"""Scores a predictions file of any detector: no model, no images, only boxes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from incdet.data.catalog import load_dataset
from incdet.data.records import DetectionDataset
from incdet.errors import SplitError
from incdet.evaluation.predictions import coco_categories, read_predictions
from incdet.evaluation.results import METRICS, task_result, write_result
from incdet.evaluation.voc_ap import Convention
from incdet.tasks import TaskSpec, TaskStream, build_stream

EPILOG = """examples:
  one data set:     incdet evaluate predictions.json --data voc_2007_test
  old and new:      incdet evaluate predictions.json --data voc_2007_test --split 15+5
  COCO's ids:       incdet evaluate predictions.json --data coco_2017_val --categories instances_val2017.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, help="COCO results file: [{image_id, category_id, bbox, score}, ...]")
    parser.add_argument("--data", required=True, help="test data, e.g. voc_2007_test or voc:<folder>:<split>")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="default: %(default)s")
    parser.add_argument("--split", help="task sizes, e.g. 10+10, for old and new classes (default: one task)")
    parser.add_argument("--order", help="alphabetical, id or seed:<n> (default: alphabetical with --split, else id)")
    parser.add_argument("--listed", metavar="A,B,...", help="the class order itself, in place of --order")
    parser.add_argument("--task", type=int, help="score what is seen after this task (default: the last)")
    parser.add_argument(
        "--categories",
        type=Path,
        metavar="ANNOTATIONS",
        help="COCO annotation file that says what each category_id means (default: 1 + position in the class order)",
    )
    parser.add_argument(
        "--convention",
        choices=get_args(Convention),
        default="devkit",
        help="pixel and tie rules of the VOC metrics, see docs/protocols.md (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write a result.json here")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores the file, prints a table and returns the result; IncdetError for what the user can mend."""
    dataset = load_dataset(arguments.data, arguments.data_root)
    stream = _stream(dataset, arguments)
    task = _task(stream, arguments.task)
    categories = None if arguments.categories is None else coco_categories(arguments.categories)
    predictions = read_predictions(arguments.predictions, dataset, stream.classes, categories)
    result = task_result(
        dataset,
        predictions,
        stream,
        task,
        convention=arguments.convention,
        protocol=_protocol(dataset, stream),
        extra={"detections": len(predictions)},
    )
    print(format_table(result, task.seen))
    if arguments.out is not None:
        write_result(arguments.out, result)
    return result


def format_table(result: Mapping[str, Any], classes: Sequence[str]) -> str:
    """AP in percent, one row per class and per group; "–" where it is undefined."""
    rows = [["class", *METRICS]]
    rows += [[name, *(_percent(result["ap"][metric][name]) for metric in METRICS)] for name in classes]
    groups = [
        [group, *(_percent(result["groups"][metric][group]) for metric in METRICS)] for group in ("old", "new", "seen")
    ]
    widths = [max(len(row[column]) for row in rows + groups) for column in range(len(rows[0]))]
    rule = "-" * (sum(widths) + 2 * len(METRICS))
    lines = [[_aligned(row, widths) for row in part] for part in (rows[:1], rows[1:], groups)]
    return "\n".join([*lines[0], rule, *lines[1], rule, *lines[2]])


def _stream(dataset: DetectionDataset, arguments: argparse.Namespace) -> TaskStream:
    listed = tuple(name.strip() for name in arguments.listed.split(",")) if arguments.listed else ()
    usual = "listed" if listed else "alphabetical" if arguments.split else "id"
    split = arguments.split or str(len(dataset.classes))
    return build_stream(split, dataset.classes, arguments.order or usual, listed)


def _task(stream: TaskStream, number: int | None) -> TaskSpec:
    if number is None:
        return stream[-1]
    if not 1 <= number <= len(stream):
        raise SplitError(f"--task {number}: the split '{stream.split}' has tasks 1 to {len(stream)}")
    return stream[number - 1]


def _protocol(dataset: DetectionDataset, stream: TaskStream) -> dict[str, Any]:
    """The part of the protocol block that a predictions file can vouch for."""
    return {
        "split": stream.split,
        "classes": list(stream.classes),
        "class_order": stream.order,
        "class_order_hash": stream.order_hash,
        "tasks": [list(task.new) for task in stream],
        "test": {"name": dataset.name, "fingerprint": dataset.fingerprint()},
    }


def _percent(ap: float | None) -> str:
    return "–" if ap is None else f"{100 * ap:.1f}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    figures = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *figures])
