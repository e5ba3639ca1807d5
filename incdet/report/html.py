"""One self-contained HTML page on a run, or on several side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from incdet import __version__
from incdet.errors import IncdetError
from incdet.files import write_atomic
from incdet.report import page, plots
from incdet.report.alignment import alignment_part
from incdet.report.examples import MIN_IOU, MIN_SCORE, draw_examples
from incdet.report.narrative import narrate
from incdet.report.runs import Run, read_metrics, read_runs
from incdet.report.table import measure, megabytes, metric_name, percent, protocol_differences


def write_report(run_folders: Sequence[Path], out: Path, title: str | None = None) -> None:
    """Write ``out`` (report.html) about the runs; a killed run shows what it finished.

    Runs of different splits, protocols or data get parts of their own, because their numbers may not be compared.

    Raises:
        IncdetError: a folder holds no finished task or a damaged file, or ``out`` cannot be written.
    """
    runs = read_runs(run_folders)
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    parts = [
        _group(f"part{index}", " · ".join(group) if len(groups) > 1 else "", members)
        for index, (group, members) in enumerate(groups.items(), start=1)
    ]
    title = title or "What was learned, and what was forgotten"
    write_atomic(out, page.page(title, "\n".join([*parts, *_appendix(runs)]), __version__))


def _group(name: str, heading: str, runs: Sequence[Run]) -> str:
    """Everything on runs that may be compared."""
    described, words = "; ".join(_described(run) for run in runs), measure(_metric(runs))
    parts = [
        f"<h2>{escape(heading)}</h2>" if heading else "",
        f'<p class="lead">{_lead(runs)}</p>',
        *(page.warning(sentence) for sentence in protocol_differences(runs)),
        "<h2>The numbers</h2>",
        _score_table(runs),
        "<h2>Class by class</h2>",
        page.figure(plots.class_bars(runs, _metric(runs)), f"{name}-classes", f"{words} of each class. {described}"),
        "<h2>Task by task</h2>",
        page.figure(plots.ap_over_tasks(runs, _metric(runs)), f"{name}-tasks", f"{words} by task. {described}"),
        "<h2>What is left of each task</h2>",
        "<p>Each row is a moment: after learning that many tasks, how well the classes of each task are found. "
        "Reading a column downwards shows those classes being forgotten, or kept.</p>",
        '<div class="side-by-side">',
        *(_heatmap(f"{name}-matrix{index}", run, _metric(runs)) for index, run in enumerate(runs)),
        "</div>",
        "<h2>Seen on test images</h2>",
        _examples(runs),
        alignment_part(name, runs),
        "<h2>Training</h2>",
        _losses(name, runs),
    ]
    return "\n".join(part for part in parts if part)


def _metric(runs: Sequence[Run]) -> str:
    """The main metric of runs that may be compared."""
    return runs[0].metrics[0]


def _lead(runs: Sequence[Run]) -> str:
    """The paragraph for readers in a hurry, with what was kept in bold."""
    text = page.loud(" ".join(narrate(runs, _metric(runs))), _stamps(runs))
    return re.sub(r"keeps \d+ %", r"<strong>\g<0></strong>", text)


def _score_table(runs: Sequence[Run]) -> str:
    """Both AP rules, forgetting, memory and time."""
    keys, metrics = ("old", "new", "all"), runs[0].metrics
    kinds = ("images", "crops") if any(run.memory("crops") for run in runs) else ("images",)
    headers = ["run", *("old before", *keys) * len(metrics), "forgetting", *kinds, "MB", "beside, MB", "training, min"]
    rows = []
    for run in runs:
        scores: list[float | None] = []
        for metric in metrics:
            old = run.old_before_and_now(metric)
            scores.append(None if old is None else 100 * old[0])
            scores += [percent(run, metric, key) for key in keys]
        rows.append(
            [
                _name(run),
                *(_shown(score) for score in [*scores, percent(run, metrics[0], "forgetting")]),
                *(_shown(run.memory(kind), 0) for kind in kinds),
                _shown(megabytes(run, "bytes"), 2),
                _shown(megabytes(run, "method_bytes"), 2),
                _shown(None if run.train_seconds is None else run.train_seconds / 60),
            ]
        )
    groups = [("", 1), *((metric_name(metric), 4) for metric in metrics), ("", 1), ("memory", len(kinds) + 1), ("", 2)]
    caption = (
        f"{measure(metrics[0])} in percent, averaged over classes. <em>Old before</em>: the old classes, each right "
        "after the task that taught it; <em>old</em>, <em>new</em> and <em>all</em>: now. <em>Forgetting</em>: mean "
        "fall of the earlier tasks' classes from their best, in points of "
        f"{metric_name(metrics[0])}. <em>Beside</em>: what methods keep beside the model, for later tasks or "
        "to predict with; the memory is not in it. – is undefined or unknown."
    )
    return page.table(headers, rows, caption, groups)


def _heatmap(name: str, run: Run, metric: str) -> str:
    rows = "; ".join(
        f"after task {t}: " + ", ".join(_shown(None if v is None else 100 * v) for v in row)
        for t, row in enumerate(run.matrix(metric), start=1)
    )
    svg = plots.forgetting_heatmap(run, metric)
    heading = page.loud(run.title, run.stamps)
    return page.figure(svg, name, f"{measure(metric)} of each task's classes, {run.title}: {rows}", heading)


def _examples(runs: Sequence[Run]) -> str:
    try:
        examples = draw_examples(runs)
    except IncdetError as error:
        return f'<p class="soft">No images are shown: {escape(str(error))}</p>'
    rows = []
    for image_id, panels in zip(examples.image_ids, examples.panels, strict=True):
        cells = "".join(
            f"<td>{page.image(panel.jpeg, f'Image {image_id}, {column}: {panel.note}')}{escape(panel.note)}</td>"
            for column, panel in zip(examples.columns, panels, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    heads = "".join(f'<th scope="col">{page.loud(column, _stamps(runs))}</th>' for column in examples.columns)
    return (
        "<p>The images were chosen by their labels alone, to show many classes, and never by what was detected. "
        f"Drawn are detections that score at least {MIN_SCORE}; a dashed grey box is an object of a class learned by "
        f"then that no such detection found (same class, overlap of at least {MIN_IOU}).</p>"
        f'<div class="scroll bleed" tabindex="0"><table class="examples"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _losses(name: str, runs: Sequence[Run]) -> str:
    rows = [read_metrics(run.folder) for run in runs]
    if not any(plots.loss_series(logged)[1] for logged in rows):
        return '<p class="soft">No training loss was logged.</p>'
    described = f"Training loss of {', '.join(run.title for run in runs)}"
    return page.figure(
        plots.loss_curve(runs, rows), f"{name}-loss", described, "Thin: logged values. Thick: running median."
    )


def _appendix(runs: Sequence[Run]) -> list[str]:
    """Per run: what its methods report, the protocol, the config."""
    parts = ["<h2>Protocol: what these numbers are numbers of</h2>"]
    parts += [page.details(_name(run), page.value(run.protocol)) for run in runs]
    extras = [(run, task) for run in runs for task in run.tasks if task.get("extra")]
    if extras:
        parts.append("<h2>What the methods report</h2>")
    for run, task in extras:
        parts.append(page.details(f"{_name(run)}, task {escape(str(task.get('task')))}", page.value(task["extra"])))
    parts.append("<h2>Configuration</h2>")
    for run in runs:
        text = run.config_text() or "This run's folder holds no config.yaml."
        parts.append(page.details(_name(run), f"<pre>{escape(text)}</pre>"))
    return parts


def _name(run: Run) -> str:
    unfinished = (
        "" if run.finished else f' <span class="soft">({len(run.tasks)} of {len(run.task_classes)} tasks)</span>'
    )
    return page.loud(run.title, run.stamps) + unfinished


def _stamps(runs: Sequence[Run]) -> list[str]:
    return sorted({stamp for run in runs for stamp in run.stamps})


def _described(run: Run) -> str:
    """A run's plot in words, for those who cannot see it."""
    scores = ", ".join(f"{key} {_shown(percent(run, run.metrics[0], key))}" for key in ("old", "new", "all"))
    return f"{run.title}: {scores}"


def _shown(number: float | None, digits: int = 1) -> str:
    return "–" if number is None else f"{number:.{digits}f}"
