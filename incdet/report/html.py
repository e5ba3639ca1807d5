"""One self-contained HTML page on a run, or on several side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path

from incdet import __version__
from incdet.errors import IncdetError
from incdet.files import write_atomic
from incdet.report import crowd, page, plots
from incdet.report.alignment import alignment_part
from incdet.report.examples import MIN_IOU, MIN_SCORE, draw_examples
from incdet.report.narrative import narrate, narrate_many, tell
from incdet.report.runs import Run, read_metrics, read_runs
from incdet.report.settings import MANY, Setting, settings_of
from incdet.report.table import Cell, measure, megabytes, metric_name, percent, protocol_differences

MATRICES = (
    "<h2>What is left of each task</h2>\n"
    "<p>Each row is a moment: after learning that many tasks, how well the classes of each task are found. "
    "Reading a column downwards shows those classes being forgotten, or kept.</p>"
)


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
    settings = settings_of(runs) if len(runs) > MANY else []
    under_settings = [run for setting in settings for run in setting.relabelled]
    parts = [
        f"<h2>{escape(heading)}</h2>" if heading else "",
        f'<p class="lead">{_lead(runs, settings)}</p>',
        *(page.warning(sentence) for sentence in protocol_differences(under_settings or runs)),
        "<h2>The numbers</h2>",
        *(_many_numbers(runs, settings) if settings else [_score_table([_alone(run) for run in runs])]),
        *(_many_pictures(name, runs, settings) if settings else _pictures(name, runs)),
    ]
    return "\n".join(part for part in parts if part)


def _pictures(name: str, runs: Sequence[Run]) -> list[str]:
    """Of runs that are few enough to be told apart by colour."""
    metric, described = _metric(runs), "; ".join(_described(run) for run in runs)
    words = measure(metric)
    return [
        "<h2>Class by class</h2>",
        page.figure(plots.class_bars(runs, metric), f"{name}-classes", f"{words} of each class. {described}"),
        "<h2>Task by task</h2>",
        page.figure(plots.ap_over_tasks(runs, metric), f"{name}-tasks", f"{words} by task. {described}"),
        MATRICES,
        '<div class="side-by-side">',
        *(_heatmap(f"{name}-matrix{index}", run, metric) for index, run in enumerate(runs)),
        "</div>",
        "<h2>Seen on test images</h2>",
        _examples(runs),
        alignment_part(name, runs),
        "<h2>Training</h2>",
        _losses(name, runs),
    ]


def _many_pictures(name: str, runs: Sequence[Run], settings: Sequence[Setting]) -> list[str]:
    """Of more runs than there are colours: what can be averaged over seeds is, of the rest one seed is shown."""
    metric = _metric(runs)
    return [
        "<h2>Class by class</h2>",
        crowd.class_part(settings, metric),
        "<h2>Task by task</h2>",
        crowd.task_part(name, settings, metric),
        MATRICES,
        crowd.matrix_part(name, settings, metric),
        "<h2>Seen on test images</h2>",
        _examples(crowd.one_of_each(settings), settings),
        alignment_part(name, runs),
        "<h2>Training</h2>",
        crowd.loss_part(name, settings),
    ]


def _metric(runs: Sequence[Run]) -> str:
    """The main metric of runs that may be compared."""
    return runs[0].metrics[0]


def _lead(runs: Sequence[Run], settings: Sequence[Setting]) -> str:
    """The paragraph for readers in a hurry, with what was kept in bold."""
    metric = _metric(runs)
    sentences = narrate_many(settings, metric) if settings else narrate(runs, metric)
    return _bold(page.loud(" ".join(sentences), _stamps(runs)))


def _bold(text: str) -> str:
    return re.sub(r"keeps \d+ %", r"<strong>\g<0></strong>", text)


def _many_numbers(runs: Sequence[Run], settings: Sequence[Setting]) -> list[str]:
    """A row for each setting; each run is folded away."""
    told = "".join(f"<li>{_bold(page.loud(text, _stamps(runs)))}</li>" for text in tell(runs, _metric(runs)))
    return [
        _score_table(settings),
        page.details(f"Each of the {len(runs)} runs", _score_table([_alone(run) for run in runs]) + f"<ul>{told}</ul>"),
    ]


def _alone(run: Run) -> Setting:
    return Setting(run.label, (run,))


def _score_table(settings: Sequence[Setting]) -> str:
    """Both AP rules, forgetting, what is kept for later, and time; mean and deviation where there are several seeds."""
    runs = [run for setting in settings for run in setting.runs]
    keys, metrics = ("old", "new", "all"), runs[0].metrics
    kinds = ("images", "crops") if any(run.memory("crops") for run in runs) else ("images",)
    headers = ["run", *("old before", *keys) * len(metrics), "forgetting", *kinds, "MB", "beside, MB", "training, min"]
    columns: list[tuple[Callable[[Run], float | None], int]] = []
    for metric in metrics:
        columns.append((partial(_old_before, metric=metric), 1))
        columns += [(partial(percent, metric=metric, key=key), 1) for key in keys]
    columns.append((partial(percent, metric=metrics[0], key="forgetting"), 1))
    columns += [(partial(Run.memory, key=kind), 0) for kind in kinds]
    columns += [(partial(megabytes, key=key), 2) for key in ("bytes", "method_bytes")]
    columns.append((_minutes, 1))
    rows = [[_row_name(one), *(_cell(one.cell(read), digits) for read, digits in columns)] for one in settings]
    groups = [("", 1), *((metric_name(metric), 4) for metric in metrics), ("", 1), ("memory", len(kinds) + 1), ("", 2)]
    caption = (
        f"{measure(metrics[0])} in percent, averaged over classes. <em>Old before</em>: the old classes, each right "
        "after the task that taught it; <em>old</em>, <em>new</em> and <em>all</em>: now. <em>Forgetting</em>: mean "
        "fall of the earlier tasks' classes from their best, in points of "
        f"{metric_name(metrics[0])}. <em>Beside</em>: what methods keep beside the model, for later tasks or "
        "to predict with; the memory is not in it. – is undefined or unknown."
    )
    if len(runs) > len(settings):
        headers[1:1], groups[:1] = ["seeds"], [("", 2)]
        rows = [[row[0], str(len(one.runs)), *row[1:]] for row, one in zip(rows, settings, strict=True)]
        caption += " Numbers are means over seeds; below them is the standard deviation, unless it rounds to 0."
    return page.table(headers, rows, caption, groups, dense=True)


def _cell(cell: Cell, digits: int) -> str:
    spread = f"<small>± {cell.std:.{digits}f}</small>" if round(cell.std or 0, digits) else ""
    return Cell(cell.mean, None).text(digits) + spread


def _old_before(run: Run, metric: str) -> float | None:
    old = run.old_before_and_now(metric)
    return None if old is None else 100 * old[0]


def _minutes(run: Run) -> float | None:
    return None if run.train_seconds is None else run.train_seconds / 60


def _row_name(setting: Setting) -> str:
    return _name(setting.runs[0]) if len(setting.runs) == 1 else page.loud(setting.title, setting.stamps)


def _heatmap(name: str, run: Run, metric: str) -> str:
    rows = "; ".join(
        f"after task {t}: " + ", ".join(_shown(None if v is None else 100 * v) for v in row)
        for t, row in enumerate(run.matrix(metric), start=1)
    )
    svg = plots.forgetting_heatmap(run, metric)
    heading = page.loud(run.title, run.stamps)
    return page.figure(svg, name, f"{measure(metric)} of each task's classes, {run.title}: {rows}", heading)


def _examples(runs: Sequence[Run], settings: Sequence[Setting] = ()) -> str:
    """Test images as the runs saw them, each of which stands for a setting where there are many."""
    try:
        examples = draw_examples(runs)
    except IncdetError as error:
        return f'<p class="soft">No images are shown: {escape(str(error))}</p>'
    explained = (
        "<p>The images were chosen by their labels alone, to show many classes, and never by what was detected. "
        f"Drawn are detections that score at least {MIN_SCORE}; a dashed grey box is an object of a class learned by "
        f"then that no such detection found (same class, overlap of at least {MIN_IOU}).</p>"
    )
    if settings:
        return explained + crowd.example_part(settings, examples, _stamps(runs))
    rows = []
    for image_id, panels in zip(examples.image_ids, examples.panels, strict=True):
        cells = "".join(
            f"<td>{page.image(panel.jpeg, f'Image {image_id}, {column}: {panel.note}')}{escape(panel.note)}</td>"
            for column, panel in zip(examples.columns, panels, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    heads = "".join(f'<th scope="col">{page.loud(column, _stamps(runs))}</th>' for column in examples.columns)
    return (
        explained + f'<div class="scroll bleed" tabindex="0"><table class="examples"><thead><tr>{heads}</tr></thead>'
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
    extras = [(run, task) for run in runs for task in run.tasks if task.get("extra")]
    absent = "This run's folder holds no config.yaml."
    sections = {
        "Protocol: what these numbers are numbers of": [
            page.details(_name(run), page.value(run.protocol)) for run in runs
        ],
        "What the methods report": [
            page.details(f"{_name(run)}, task {escape(str(task.get('task')))}", page.value(task["extra"]))
            for run, task in extras
        ],
        "Configuration": [
            page.details(_name(run), f"<pre>{escape(run.config_text() or absent)}</pre>") for run in runs
        ],
    }
    parts = []
    for heading, entries in sections.items():
        if entries:
            folded = [page.details(f"{len(entries)} entries", "\n".join(entries))] if len(runs) > MANY else entries
            parts += [f"<h2>{heading}</h2>", *folded]
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
