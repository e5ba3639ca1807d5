"""What aligning was worth to a run: a table for the terminal, and a part of the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from incdet.errors import DataError
from incdet.files import read_json
from incdet.report import page, plots
from incdet.report.runs import Run
from incdet.report.table import metric_name

FILE = "alignment.json"
GROUPS = {"old": "old", "new": "new", "all": "seen"}
_PARTS = {"task": int, "readings": list, "scores": dict, "fit_seconds": dict}
Study = Mapping[str, Any]


def read_study(path: Path) -> Study:
    """What ``engine.alignment.study_alignment`` wrote.

    Raises:
        IncdetError: the file is missing, damaged or something else.
    """
    study = read_json(path, "a study of aligners")
    wrong = [key for key, kind in _PARTS.items() if not isinstance(study, dict) or not isinstance(study.get(key), kind)]
    if wrong:
        raise DataError(f"{path} is not a study of aligners: {', '.join(wrong)} missing. Run `incdet alignment` again.")
    return study


def alignment_table(studies: Sequence[Study]) -> str:
    """Rows of aligner and gate, averaged over studies (of seeds, say), in Markdown."""
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for study in studies:
        for reading in study["readings"]:
            rows.setdefault((reading["aligner"], reading["gate"]), []).append(reading)
    lines = [
        f"| aligner | gate | {' | '.join(_columns(studies[0]))} |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (aligner, gate), readings in rows.items():
        stamp = "".join(f" [{stamp.upper()}]" for stamp in readings[0]["stamps"])
        lines.append(f"| {aligner or 'none'} | {gate or '–'}{stamp} | {' | '.join(_numbers(readings))} |")
    return "\n".join(lines)


def alignment_part(name: str, runs: Sequence[Run]) -> str:
    """The part of the page on the studies that lie in the runs' folders; empty where there are none."""
    parts = [
        _study(f"{name}-alignment{number}-{path.parent.name}", run, read_study(path))
        for number, run in enumerate(runs)
        for path in sorted(run.folder.glob(f"task_*/{FILE}"))
    ]
    if not parts:
        return ""
    explained = (
        "<p>Learning a task moves the features of all regions, those of old classes too. An aligner moves them back "
        "before the predictor reads them; a gate decides which. It was fitted on the task's own images alone, and "
        "every row below is the same detector on the same regions. The oracle gate is told by the test labels which "
        "regions are old: it shows what the gates leave undone, and is no result.</p>"
    )
    return "\n".join(["<h2>What aligning features is worth</h2>", explained, *parts])


def _study(name: str, run: Run, study: Study) -> str:
    fits = ", ".join(f"{aligner} {seconds:g} s" for aligner, seconds in study["fit_seconds"].items())
    heading = f"<h3>{page.loud(run.title, run.stamps)}, task {study['task']}</h3>"
    caption = (
        f"{metric_name(_metric(study))} in percent. Fitted on {study['latents']:,} regions: {escape(fits)}. "
        "<em>Seconds</em>: gate, aligner and predictor on all test images together."
    )
    rows = [
        [
            escape(reading["aligner"] or "none"),
            escape(reading["gate"] or "–") + page.badges(reading["stamps"]),
            *_numbers([reading]),
        ]
        for reading in study["readings"]
    ]
    parts = [heading, page.table(["aligner", "gate", *_columns(study)], rows, caption)]
    for number, (aligner, scores) in enumerate(study["scores"].items()):
        described = f"Scores that {aligner} gives to latents of the previous model, of this one, and after the walk"
        parts.append(page.figure(plots.score_histograms(scores), f"{name}-{number}", described, escape(described)))
    return "\n".join([*parts, page.details("Class by class", _class_table(study))])


def _class_table(study: Study) -> str:
    readings = study["readings"]
    headers = ["class", *(escape(f"{r['aligner'] or 'none'} {r['gate']}") + page.badges(r["stamps"]) for r in readings)]
    metric = _metric(study)
    names = list(readings[0]["ap"][metric])
    return page.table(headers, [[escape(name), *(_mean([r["ap"][metric][name]]) for r in readings)] for name in names])


def _metric(study: Study) -> str:
    return next(iter(study["readings"][0]["ap"]))


def _columns(study: Study) -> list[str]:
    short = {"voc_area_50": "AP50"}.get(_metric(study), metric_name(_metric(study)))
    return [*(f"{group} {short}" for group in GROUPS), "regions moved", "seconds"]


def _numbers(readings: Sequence[Mapping[str, Any]]) -> list[str]:
    """AP of each group, regions moved and seconds, over the readings of one aligner behind one gate."""
    ap = [_mean([reading["groups"][next(iter(reading["ap"]))][key] for reading in readings]) for key in GROUPS.values()]
    moved = round(statistics.mean(reading["moved"] for reading in readings))
    return [*ap, f"{moved:,}", f"{statistics.mean(reading['seconds'] for reading in readings):.2f}"]


def _mean(values: Sequence[float | None]) -> str:
    """Percent, with the deviation where there are several."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"
