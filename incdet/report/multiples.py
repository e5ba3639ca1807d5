"""Figures of many settings: a small panel for each, all on the same axes, instead of lines that share few colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from incdet.report.plots import (
    GRID,
    OKABE_ITO,
    STYLE,
    Format,
    draw_matrix,
    in_percent,
    loss_series,
    plain_axes,
    render,
    running_median,
    task_curves,
)
from incdet.report.settings import Setting, means
from incdet.report.table import metric_name

WIDTH = 7.2  # inches, of the figure
COLUMNS = 4
CURVES = (("classes of the first task", OKABE_ITO[0], "o", "-"), ("all classes seen so far", OKABE_ITO[1], "s", "--"))
POINTS = 120  # of a loss curve: what a panel of this size can show
SMALL: Any = STYLE | {"font.size": 7}


def tasks_of_each(settings: Sequence[Setting], metric: str, fmt: Format = "svg") -> bytes:
    """A panel per setting: mean AP of the first task's classes, and of all seen so far, over the tasks.

    Thick: the mean over the seeds. Thin: each of them.
    """
    with mpl.rc_context(SMALL):
        figure, panels = _panels(settings, metric)
        for axes, setting in zip(panels, settings, strict=True):
            seeds = [task_curves(run, setting.metric(metric)) for run in setting.runs]
            for which, (label, colour, marker, dashes) in enumerate(CURVES):
                rows = [curves[which] for curves in seeds]
                tasks = range(1, len(rows[0]) + 1)
                for row in rows if len(rows) > 1 else ():
                    axes.plot(tasks, in_percent(row), color=colour, ls=dashes, lw=0.6, alpha=0.5)
                line: dict[str, Any] = {"color": colour, "ls": dashes, "lw": 1.4, "marker": marker, "ms": 2.5}
                axes.plot(tasks, in_percent(means(rows)), label=label, **line)
            axes.set_ylim(0, 104)
            axes.set_yticks([0, 50, 100])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        figure.supxlabel("tasks learned", fontsize=8)
        figure.supylabel(f"mean {metric_name(metric)}, %", fontsize=8)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        return render(figure, fmt)


def losses_of_each(
    settings: Sequence[Setting], logged: Mapping[Path, Sequence[dict[str, Any]]], fmt: Format = "svg"
) -> bytes:
    """A panel per setting: the running median of the training loss of each seed, tasks one after another.

    Args:
        settings: that are compared.
        logged: the rows of each run's metrics.jsonl, by its folder.
        fmt: of the picture.
    """
    with mpl.rc_context(SMALL):
        figure, panels = _panels(settings)
        for axes, setting in zip(panels, settings, strict=True):
            for number, run in enumerate(setting.runs):
                iterations, losses, ends = loss_series(logged[run.folder])
                start = 0
                for end in ends:
                    stop = iterations.index(end) + 1
                    line = running_median(losses[start:stop])
                    kept = _thinned(len(line))
                    places = np.asarray(iterations[start:stop])[kept]
                    axes.plot(places, np.asarray(line)[kept], color=OKABE_ITO[0], lw=0.9, alpha=0.6)
                    start = stop
                for end in ends[:-1] if not number else ():
                    axes.axvline(end, color=GRID, lw=0.7, ls=":")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=4))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
        figure.supxlabel("iteration, all tasks one after another", fontsize=8)
        figure.supylabel("training loss (log scale)", fontsize=8)
        return render(figure, fmt)


def matrices_of_each(settings: Sequence[Setting], metric: str, fmt: Format = "svg") -> bytes:
    """The task matrix of the first run of each setting, under one colour bar."""
    size = max(len(setting.runs[0].matrix(setting.metric(metric))) for setting in settings)
    columns = max(1, min(5, int(WIDTH / (0.4 + 0.19 * size))))
    with mpl.rc_context(SMALL):
        rows = -(-len(settings) // columns)
        figure = Figure(figsize=(WIDTH, 0.9 + rows * (0.42 + 0.2 * max(size, 3))), layout="constrained")
        panels = _used(figure, rows, columns, len(settings))
        for axes, setting in zip(panels, settings, strict=True):
            image = draw_matrix(axes, setting.runs[0], setting.metric(metric), 5.5 if size > 6 else 6.5)
            axes.set_title(_heading(setting, metric, 24 + 8 * max(0, 4 - columns)), fontsize=7, loc="left")
        figure.supxlabel("classes of task", fontsize=8)
        figure.supylabel("after learning task", fontsize=8)
        # On top, where a reader of a tall figure begins.
        label = f"{metric_name(metric)}, %"
        bar = figure.colorbar(image, ax=panels, label=label, location="top", shrink=0.4, aspect=30, anchor=(0, 0))
        bar.outline.set_visible(False)
        return render(figure, fmt)


def _panels(settings: Sequence[Setting], metric: str | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per setting, under its name."""
    rows = -(-len(settings) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.6 + 1.3 * rows), layout="constrained")
    panels = _used(figure, rows, COLUMNS, len(settings), share=True)
    for index, (axes, setting) in enumerate(zip(panels, settings, strict=True)):
        axes.set_title(_heading(setting, metric, 26), fontsize=7.5, loc="left")
        axes.tick_params(labelbottom=index + COLUMNS >= len(settings), length=2)  # the lowest of its column
        plain_axes(axes, grid="y")
    return figure, panels


def _used(figure: Figure, rows: int, columns: int, count: int, share: bool = False) -> list[Axes]:
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)
    for empty in panels[count:]:
        empty.set_visible(False)
    return panels[:count]


def _heading(setting: Setting, metric: str | None, width: int) -> str:
    """The setting's name over a panel, never cut short: its stamps stand last. Dollars would be read as mathematics."""
    note = setting.note(metric) if metric else ""
    return textwrap.fill(setting.title + note, width).replace("$", r"\$")


def _thinned(count: int) -> np.ndarray:
    """Which points of a curve are drawn: the first, the last, and some between them."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))
