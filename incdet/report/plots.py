"""Figures of a run or of several runs side by side, as SVG or PNG bytes.

Matplotlib's object interface only: no pyplot, no global figure. Runs are told apart by colour (Okabe and Ito's palette
for colour-blind readers) and by marker or hatch, so that the figures also survive a black-and-white printer.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from incdet.report.runs import Run, number
from incdet.report.table import metric_name

Format = Literal["svg", "png"]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
HATCHES = ("", "///", "...", "xxx", "---", "+++")
INK = "#1b1f24"  # text and axes; the report replaces it by the page's own text colour
GRID = "#8b949e"
SHADES = "cividis"  # of cells: from dark to bright for all readers
SMOOTHING = 7  # rows of metrics.jsonl in the running median of the loss (ours)
# Any: matplotlib types the keys by a list that grows with its versions.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: searchable, and small in bytes
    "svg.hashsalt": "incdet",  # the same numbers give the same file
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def class_bars(runs: Sequence[Run], metric: str = "voc_area_50", fmt: Format = "svg") -> bytes:
    """Horizontal bars: AP of every class after the last task, one bar per run.

    A tick across a bar marks what the same run had right after the task that taught the class.
    """
    classes = list(dict.fromkeys(name for run in runs for name in run.learned))
    thickness = 0.8 / len(runs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.1 + len(classes) * (0.16 + 0.13 * len(runs))), layout="constrained")
        axes = figure.add_subplot()
        for index, run in enumerate(runs):
            places = np.arange(len(classes)) - 0.4 + (index + 0.5) * thickness
            now, before = run.class_ap(metric), run.class_ap_when_learned(metric)
            axes.barh(places, in_percent([now.get(c) for c in classes]), 0.9 * thickness, **_bar_style(runs, index))
            axes.scatter(
                in_percent([before.get(c) for c in classes]), places, marker="|", s=30, c=INK, lw=1.6, zorder=3
            )
        axes.scatter([], [], marker="|", s=30, c=INK, lw=1.6, label="when the class was learned")
        axes.set_yticks(range(len(classes)), classes)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{metric_name(metric)}, %")
        plain_axes(axes, grid="x")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        return render(figure, fmt)


def ap_over_tasks(runs: Sequence[Run], metric: str = "voc_area_50", fmt: Format = "svg") -> bytes:
    """Two panels over the tasks: mean AP of the first task's classes, and of all classes seen so far."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        first, seen = figure.subplots(1, 2, sharex=True, sharey=True)
        for index, run in enumerate(runs):
            one, all_seen = task_curves(run, metric)
            style: dict[str, Any] = {"color": _colour(index), "marker": MARKERS[index % len(MARKERS)], "lw": 1.8}
            first.plot(range(1, len(one) + 1), in_percent(one), label=_legend(run), **style)
            seen.plot(range(1, len(all_seen) + 1), in_percent(all_seen), **style)
        for axes, title in ((first, "Classes of the first task"), (seen, "All classes seen so far")):
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel("tasks learned")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(0, 100)
            plain_axes(axes, grid="y")
        first.set_ylabel(f"mean {metric_name(metric)}, %")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        return render(figure, fmt)


def forgetting_heatmap(run: Run, metric: str = "voc_area_50", fmt: Format = "svg") -> bytes:
    """The task matrix: row t holds the mean AP of each task's classes after learning task t."""
    size = len(run.matrix(metric))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.9 + 0.62 * size, 1.2 + 0.5 * size), layout="constrained")
        axes = figure.add_subplot()
        image = draw_matrix(axes, run, metric)
        axes.set_xlabel("classes of task")
        axes.set_ylabel("after learning task")
        figure.colorbar(image, ax=axes, label=f"{metric_name(metric)}, %").outline.set_visible(False)
        return render(figure, fmt)


def draw_matrix(axes: Axes, run: Run, metric: str, size_of_text: float | None = None) -> AxesImage:
    """The cells of a task matrix in percent, with their shades."""
    rows = run.matrix(metric)
    size = max(len(rows), max((len(row) for row in rows), default=0))
    grid = np.full((size, size), np.nan)
    for t, row in enumerate(rows):
        grid[t, : len(row)] = in_percent(row)
    image = axes.imshow(np.ma.masked_invalid(grid), cmap=SHADES, vmin=0, vmax=100, aspect="auto")
    for (t, task), value in np.ndenumerate(grid):
        if np.isfinite(value):
            style: dict[str, Any] = {"color": ink_on(value), "fontsize": size_of_text}
            axes.text(task, t, f"{value:.0f}", ha="center", va="center", **style)
    axes.set_xticks(range(size), [str(task + 1) for task in range(size)])
    axes.set_yticks(range(size), [str(task + 1) for task in range(size)])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def ink_on(percent: float) -> str:
    """The colour of text on the shade of a percentage."""
    return "white" if percent < 55 else "black"


def task_curves(run: Run, metric: str) -> tuple[list[float | None], list[float | None]]:
    """After each task: mean AP of the first task's classes, and of all classes seen so far."""
    first = [row[0] if row else None for row in run.matrix(metric)]
    seen = [number(((task.get("groups") or {}).get(metric) or {}).get("seen")) for task in run.tasks]
    return first, seen


def loss_curve(runs: Sequence[Run], rows: Sequence[Sequence[dict[str, Any]]], fmt: Format = "svg") -> bytes:
    """Total training loss over the iterations of all tasks, with a running median; dotted lines part the tasks.

    ``rows`` holds the rows of each run's metrics.jsonl (``runs.read_metrics``).
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for index, (run, logged) in enumerate(zip(runs, rows, strict=True)):
            iterations, losses, ends = loss_series(logged)
            if not losses:
                continue
            axes.plot(iterations, losses, color=_colour(index), lw=0.6, alpha=0.35)
            axes.plot([], [], color=_colour(index), lw=1.8, label=_legend(run))
            start = 0
            for end in ends:
                stop = iterations.index(end) + 1
                # A median across the border of two tasks would smear the jump that the new classes cause.
                axes.plot(iterations[start:stop], running_median(losses[start:stop]), color=_colour(index), lw=1.8)
                axes.axvline(end, color=GRID, lw=0.8, ls=":")
                start = stop
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("iteration, all tasks one after another")
        axes.set_ylabel("training loss (log scale)")
        plain_axes(axes, grid="y")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        return render(figure, fmt)


def sweep_curve(scores: Mapping[int, float | None], label: str, fmt: Format = "png") -> bytes:
    """The score of each trial of a sweep, and the best so far; None is a trial that diverged.

    Args:
        scores: by the trial's number, in 0..1.
        label: of the scores.
        fmt: of the picture.
    """
    known = {number: 100 * score for number, score in scores.items() if score is not None}
    diverged = [number for number, score in scores.items() if score is None]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(list(known), list(known.values()), color=OKABE_ITO[0], s=28, label="trial", zorder=3)
        best = np.maximum.accumulate(list(known.values()))
        axes.step(list(known), best, where="post", color=OKABE_ITO[1], lw=1.8, label="best so far")
        if diverged:
            floor = axes.get_xaxis_transform()  # without a score there is no height
            axes.scatter(diverged, [0.03] * len(diverged), color=INK, marker="x", transform=floor, label="diverged")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{label}, %")
        plain_axes(axes, grid="y")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        return render(figure, fmt)


def score_histograms(scores: Mapping[str, Sequence[float]], fmt: Format = "svg") -> bytes:
    """How often each score of an energy network occurs: ``edges`` and, per kind of latent, the counts between them."""
    labels = {"old": "previous model", "new": "this model", "walked": "this model, aligned"}
    edges = np.asarray(scores["edges"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for index, (kind, label) in enumerate(labels.items()):
            axes.stairs(scores[kind], edges, label=label, color=OKABE_ITO[index], lw=1.8, ls=("-", "--", ":")[index])
        axes.set_xlabel("score: higher is more familiar")
        axes.set_ylabel("regions")
        plain_axes(axes, grid="y")
        axes.legend(frameon=False)
        return render(figure, fmt)


def loss_series(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[float], list[int]]:
    """Iterations counted through all tasks, the total loss at each, and the iteration at which each task ended."""
    iterations: list[int] = []
    losses: list[float] = []
    ends: list[int] = []
    task, offset = None, 0
    for row in rows:
        loss, iteration = number(row.get("loss")), number(row.get("iteration"))
        if loss is None or iteration is None:
            continue
        if row.get("task") != task and iterations:
            offset = iterations[-1]
            ends.append(offset)
        task = row.get("task")
        iterations.append(offset + int(iteration))
        losses.append(loss)
    return iterations, losses, ends + iterations[-1:]


def in_percent(values: Sequence[float | None]) -> np.ndarray:
    """Values of 0..1 as a curve is drawn from them, with gaps where they are unknown."""
    return np.array([np.nan if value is None else 100 * value for value in values], dtype=float)


def running_median(values: Sequence[float]) -> list[float]:
    """The median of each value and its neighbours: what a loss curve shows in thick."""
    half = SMOOTHING // 2
    return [float(np.median(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def _colour(index: int) -> str:
    return OKABE_ITO[index % len(OKABE_ITO)]


def _bar_style(runs: Sequence[Run], index: int) -> dict[str, Any]:
    # White hatching on a filled bar: readable in colour and without it.
    hatch = HATCHES[index % len(HATCHES)]
    return {"color": _colour(index), "hatch": hatch, "edgecolor": "white", "lw": 0, "label": _legend(runs[index])}


def _legend(run: Run) -> str:
    # A leading underscore would hide the entry from matplotlib's legends; dollars would be read as mathematics.
    return run.title.lstrip("_").replace("$", r"\$")


def plain_axes(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Two axes and a faint grid: all that a plot needs."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)


def render(figure: Figure, fmt: Format) -> bytes:
    """The figure's file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # Without a date the same numbers give the same bytes.
    metadata = {"Date": None, "Creator": None} if fmt == "svg" else None
    figure.savefig(buffer, format=fmt, dpi=150, transparent=fmt == "svg", metadata=metadata)
    return buffer.getvalue()
