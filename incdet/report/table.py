"""Benchmark tables: runs grouped by what may be compared, mean and spread over seeds, in three formats."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from incdet.errors import DataError
from incdet.report.runs import PROTOCOL_FIELDS, Run

# Of the summary, for further computing; the second need a joint run among those of the table.
DETAILS = ("base_new", "fpp", "harmonic_mean", "group_average")
DETAILS_BESIDE_JOINT = ("abs_gap", "omega_base", "omega_new")
DEFICITS = ("rsd", "rpd")  # beside joint, too, and percent already
METRIC_NAMES = {
    "coco": "AP50:95 (COCO)",
    "coco_50": "AP50 (COCO)",
    "coco_75": "AP75 (COCO)",
    "top1": "top-1",
    "top1_task": "top-1 within the task",
    "multi_label_ap": "multi-label mAP",
}


@dataclass(frozen=True)
class Column:
    """One column: where its number comes from and how it is shown."""

    key: str
    header: str
    digits: int
    read: Callable[[Run], float | None]
    detail: bool = False  # for further computing: CSV has it, tables for readers have not


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over runs; the deviation is None for fewer than two."""

    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Cell:
        """The cell of several runs; undefined values are left out."""
        known = [value for value in values if value is not None]
        if not known:
            return cls(None, None)
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)

    def text(self, digits: int, plus_minus: str = " ± ") -> str:
        if self.mean is None:
            return "–"
        spread = "" if self.std is None else f"{plus_minus}{self.std:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Row:
    """The runs of one setting, over seeds."""

    label: str
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class BenchmarkTable:
    """Rows that may be compared: one split, one protocol, one data set."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def shown(self) -> list[int]:
        """The places of the columns that people read."""
        return [place for place, column in enumerate(self.columns) if not column.detail]


def benchmark_tables(runs: Sequence[Run], metric: str | None = None) -> list[BenchmarkTable]:
    """One table per (split, protocol, data, metric), one row per setting (the run's NAME, or its methods).

    Unfinished runs are left out, with a warning. Old, new and all are also given by VOC's other AP rule; the rest is
    of ``metric`` alone: where it is not given, of each run's main one. "Old before" is the old classes' AP right after
    each was learned, "first task" (``base_old``) the first task's classes' AP at the end. A column without a number is
    left out: what is measured against a joint or an independent run needs one among ``runs``.

    Raises:
        DataError: no run has the metric.
    """
    known = sorted({name for run in runs for name in run.results.get("summary") or {}})
    if metric is not None and metric not in known:
        raise DataError(f"--metric: expected one of {', '.join(known) or 'none'}, but {metric!r} came")
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        # A classifier whose heads know the task is measured in another way, and beside its like.
        groups.setdefault((*run.group, metric or run.metrics[0]), []).append(run)
    return [_table(group, members) for group, members in groups.items()]


def protocol_differences(runs: Sequence[Run]) -> list[str]:
    """One sentence for each protocol field in which runs that stand side by side differ."""
    sentences = []
    for field in PROTOCOL_FIELDS:
        values: dict[str, list[str]] = {}
        for run in runs:
            values.setdefault(json.dumps(run.protocol.get(field), sort_keys=True), []).append(run.label)
        if len(values) > 1:
            listed = "; ".join(f"{value} in {', '.join(dict.fromkeys(labels))}" for value, labels in values.items())
            sentences.append(f"the runs differ in {field}: {listed}")
    return sentences


def to_markdown(tables: Sequence[BenchmarkTable]) -> str:
    """GitHub-flavoured Markdown, one heading per table."""
    parts = []
    for table in tables:
        lines = [_markdown_row(header) for header in [_headers(table), ["---"] + ["---:"] * (len(table.shown) + 1)]]
        lines += [_markdown_row(_texts(table, row)) for row in table.rows]
        notes = "".join(f"\n> Warning: {warning}\n" for warning in table.warnings)
        parts.append(f"### {table.title}\n\n" + "\n".join(lines) + f"\n{notes}")
    return "\n".join(parts)


def to_csv(tables: Sequence[BenchmarkTable]) -> str:
    """Unrounded means and standard deviations in columns of their own, for further computing."""
    keys = dict.fromkeys(column.key for table in tables for column in table.columns)
    names = [f"{key}_{kind}" for key in keys for kind in ("mean", "std")]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["table", "methods", "runs", *names], lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            cells = zip(table.columns, row.cells, strict=True)
            numbers = {
                f"{column.key}_{kind}": getattr(cell, kind) for column, cell in cells for kind in ("mean", "std")
            }
            writer.writerow({"table": table.title, "methods": row.label, "runs": len(row.runs), **numbers})
    return buffer.getvalue()


def to_latex(tables: Sequence[BenchmarkTable]) -> str:
    """One ``tabular`` per table, with the rules of the booktabs package; warnings become comments."""
    parts = []
    for table in tables:
        lines = [f"% Warning: {warning}" for warning in table.warnings]
        lines += [r"\begin{tabular}{l" + "r" * (len(table.shown) + 1) + "}", r"\toprule"]
        lines += [f"% {table.title}", _latex_row(_headers(table)), r"\midrule"]
        lines += [_latex_row(_texts(table, row)).replace("±", r"$\pm$").replace("–", "--") for row in table.rows]
        lines += [r"\bottomrule", r"\end{tabular}", ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


FORMATS: dict[str, Callable[[Sequence[BenchmarkTable]], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
}


def metric_name(metric: str) -> str:
    """A metric's key as people write it: ``voc_area_50`` is ``AP50 (area)``."""
    if metric.startswith("voc_"):
        rule, threshold = metric.removeprefix("voc_").split("_")
        return f"AP{threshold} ({'11-point' if rule == '11point' else rule})"
    return METRIC_NAMES.get(metric, metric)


def measure(metric: str) -> str:
    """What a metric measures, in words."""
    return "Share of images that are classified right" if metric.startswith("top1") else "Average precision"


def percent(run: Run, metric: str, key: str) -> float | None:
    """A score of the summary in percent."""
    value = run.score(metric, key)
    return None if value is None else 100 * value


def megabytes(run: Run, key: str) -> float | None:
    """What a run keeps for later: ``bytes`` of the exemplar memory, ``method_bytes`` beside the model."""
    stored = run.memory(key)
    return None if stored is None else stored / 1e6


def _table(group: tuple[str, ...], runs: list[Run]) -> BenchmarkTable:
    split, protocol, data, metric = group
    warnings = [f"{run.label} was left out: it did not finish its last task" for run in runs if not run.finished]
    complete = [run for run in runs if run.finished]
    rows: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    for run in complete:
        rows.setdefault((run.setting, run.stamps), []).append(run)
    columns = tuple(
        column
        for column in _columns(metric, _finetune_step(complete))
        if any(column.read(run) is not None for run in complete)
    )
    for members in rows.values():
        seeds = [run.protocol.get("seed") for run in members]
        if len(set(seeds)) < len(seeds):
            warnings.append(f"one row averages runs of equal seed: {', '.join(run.label for run in members)}")
    return BenchmarkTable(
        title=f"{split}, {protocol}, {data}, {metric_name(metric)}",
        columns=columns,
        rows=tuple(_row(setting, stamps, members, columns) for (setting, stamps), members in rows.items()),
        warnings=tuple(warnings + protocol_differences(complete)),
    )


def _row(setting: str, stamps: tuple[str, ...], runs: list[Run], columns: tuple[Column, ...]) -> Row:
    label = setting + "".join(f" [{stamp.upper()}]" for stamp in stamps)
    return Row(label, tuple(runs), tuple(Cell.of([column.read(run) for run in runs]) for column in columns))


def _columns(metric: str, finetune_step: float | None) -> tuple[Column, ...]:
    def score(name: str, key: str, header: str, detail: bool = False) -> Column:
        shown = header if name == metric else f"{header}, {metric_name(name)}"  # the main metric is in the title
        return Column(f"{key}_{name}", shown, 1, lambda run: percent(run, name, key), detail)

    def old_before(run: Run) -> float | None:
        old = run.old_before_and_now(metric)
        return None if old is None else 100 * old[0]

    def minutes(run: Run) -> float | None:
        return None if run.train_seconds is None else run.train_seconds / 60

    def step_cost(run: Run) -> float | None:
        step = run.seconds_per_step
        return None if step is None or not finetune_step else step / finetune_step

    def gap(run: Run) -> float | None:
        below = percent(run, metric, "rel_gap")
        return None if below is None else -below

    classifies = not metric.startswith(("voc", "coco"))  # in whose literature tasks are what is averaged over
    columns = [score(name, key, key) for name in _rules(metric) for key in ("old", "new", "all")]
    columns.append(Column(f"old_before_{metric}", "old before", 1, old_before))
    columns += [score(metric, "base_old", "first task"), score(metric, "forgetting", "forgetting")]
    columns.append(score(metric, "average_incremental", "average incremental"))
    columns.append(score(metric, "average_incremental_after_base", "average incremental after base", not classifies))
    columns += [score(metric, key, key.upper(), not classifies) for key in ("acc", "bwt")]
    columns += [score(metric, "fwt", "FWT"), score(metric, "omega_all", "Omega")]
    columns += [score(metric, key, key, detail=True) for key in (*DETAILS, *DETAILS_BESIDE_JOINT)]
    columns += [Column(f"{key}_{metric}", key, 1, partial(Run.score, metric=metric, key=key), True) for key in DEFICITS]
    columns.append(Column("memory_megabytes", "memory (MB)", 2, lambda run: megabytes(run, "bytes")))
    beside = "kept beside the model (MB)"
    columns.append(Column("method_megabytes", beside, 2, lambda run: megabytes(run, "method_bytes")))
    columns.append(Column("train_minutes", "training (min)", 1, minutes))
    columns.append(Column("step_cost", "a step's time / finetune's", 2, step_cost))
    columns.append(Column("gap_to_joint_percent", "gap to joint (%)", 1, gap))
    return tuple(columns)


def _rules(metric: str) -> list[str]:
    """The metric and, of a VOC metric, the same threshold under the other AP rule."""
    if "area" in metric:
        return [metric, metric.replace("area", "11point")]
    if "11point" in metric:
        return [metric, metric.replace("11point", "area")]
    return ["top1", "top1_task"] if metric == "top1" else [metric]


def _finetune_step(runs: list[Run]) -> float | None:
    """Seconds of a later task's step without any remedy: what a method's cost is measured in."""
    return Cell.of([run.seconds_per_step for run in runs if run.methods == ("finetune",)]).mean


def _headers(table: BenchmarkTable) -> list[str]:
    return ["methods", "runs", *(table.columns[place].header for place in table.shown)]


def _texts(table: BenchmarkTable, row: Row) -> list[str]:
    cells = [row.cells[place].text(table.columns[place].digits) for place in table.shown]
    return [row.label, str(len(row.runs)), *cells]


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def _latex_row(texts: Sequence[str]) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    return " & ".join("".join(special.get(c, c) for c in text) for text in texts) + r" \\"
