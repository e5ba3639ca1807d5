"""The pictures of a page on many runs: one row, panel or picture for each setting, averaged over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import matplotlib as mpl
from matplotlib.colors import to_hex

from incdet.report import multiples, page
from incdet.report.examples import Examples
from incdet.report.plots import SHADES, ink_on, loss_series
from incdet.report.runs import Run, read_metrics
from incdet.report.settings import Setting
from incdet.report.table import Cell, measure, metric_name


def class_part(settings: Sequence[Setting], metric: str) -> str:
    """A table of settings and classes, shaded by AP after the last task, with what was lost since the class was new."""
    classes = list(dict.fromkeys(name for setting in settings for run in setting.runs for name in run.learned))
    rows = []
    for setting in settings:
        now = [run.class_ap(setting.metric(metric)) for run in setting.runs]
        before = [run.class_ap_when_learned(setting.metric(metric)) for run in setting.runs]
        cells = []
        for name in classes:
            changes = [_difference(n.get(name), b.get(name)) for n, b in zip(now, before, strict=True)]
            cells.append(_shade(Cell.of([n.get(name) for n in now]).mean, Cell.of(changes).mean))
        note = setting.note(metric)
        soft = f'<span class="soft">{escape(note)}</span>' if note else ""
        rows.append((page.loud(setting.title, setting.stamps) + soft, cells))
    caption = (
        f"{measure(metric)}, {metric_name(metric)}, by class after the last task, in percent, mean over seeds. "
        "Small: the points that were lost, or gained, since the task that taught the class."
    )
    return page.heat_table(classes, rows, caption, _task_spans(settings, classes))


def task_part(name: str, settings: Sequence[Setting], metric: str) -> str:
    """A panel per setting over the tasks."""
    drawn = multiples.tasks_of_each(settings, metric)
    described = f"{measure(metric)} by task, a panel for each of {_listed(settings)}"
    seeds = any(len(setting.runs) > 1 for setting in settings)
    return page.figure(drawn, f"{name}-tasks", described, "Thick: mean over seeds. Thin: each seed." if seeds else "")


def matrix_part(name: str, settings: Sequence[Setting], metric: str) -> str:
    """The matrix of one run of each setting."""
    drawn = multiples.matrices_of_each(settings, metric)
    described = f"{measure(metric)} of each task's classes after each task, a matrix for each of {_listed(settings)}"
    return _one_of_each(settings) + page.figure(drawn, f"{name}-matrix", described)


def example_part(settings: Sequence[Setting], examples: Examples, stamps: Sequence[str]) -> str:
    """The test images one under the other, each with the panels of one run of each setting around it."""
    parts = [_one_of_each(settings)]
    for image_id, panels in zip(examples.image_ids, examples.panels, strict=True):
        cells = "".join(
            f"<figure>{page.image(panel.jpeg, f'Image {image_id}, {column}: {panel.note}')}"
            f"<figcaption><strong>{page.loud(column, stamps)}</strong><br>{escape(panel.note)}</figcaption></figure>"
            for column, panel in zip(examples.columns, panels, strict=True)
        )
        parts.append(f'<h3>Image {escape(image_id)}</h3><div class="panels">{cells}</div>')
    return "\n".join(parts)


def loss_part(name: str, settings: Sequence[Setting]) -> str:
    """A panel per setting with the training loss of each of its seeds."""
    logged = {run.folder: read_metrics(run.folder) for setting in settings for run in setting.runs}
    if not any(loss_series(rows)[1] for rows in logged.values()):
        return '<p class="soft">No training loss was logged.</p>'
    drawn = multiples.losses_of_each(settings, logged)
    described = f"Training loss, a panel for each of {_listed(settings)}"
    heading = (
        "Running medians, a line for each seed. Dotted lines part the tasks; a first task that was learned in another "
        "run has no curve here."
    )
    return page.figure(drawn, f"{name}-loss", described, heading)


def one_of_each(settings: Sequence[Setting]) -> list[Run]:
    """The run of each setting that stands for it, under its name, where a mean cannot be drawn."""
    return [setting.relabelled[0] for setting in settings]


def _one_of_each(settings: Sequence[Setting]) -> str:
    if all(len(setting.runs) == 1 for setting in settings):
        return ""
    seeds = sorted({str(run.protocol.get("seed", "?")) for run in one_of_each(settings)})
    return f"<p>Of each setting one run is shown: that of seed {escape(' or '.join(seeds))}.</p>"


def _task_spans(settings: Sequence[Setting], classes: Sequence[str]) -> list[tuple[str, int]]:
    """Which classes each task taught, where all runs agree in that."""
    orders = {tuple(map(tuple, run.task_classes)) for setting in settings for run in setting.runs}
    sizes = [len(names) for names in min(orders)] if len(orders) == 1 else []
    return [(f"task {task}", size) for task, size in enumerate(sizes, start=1)] if sum(sizes) == len(classes) else []


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _shade(now: float | None, change: float | None) -> tuple[str, str, str]:
    """A cell's text, its colours and its small print."""
    if now is None:
        return "–", "", ""
    percent = 100 * now
    points = 0 if change is None else round(100 * change)
    colours = f"background:{to_hex(mpl.colormaps[SHADES](percent / 100))};color:{ink_on(percent)}"
    return f"{percent:.0f}", colours, f"{points:+d}".replace("-", "−") if points else ""


def _listed(settings: Sequence[Setting]) -> str:
    return ", ".join(setting.title for setting in settings)
