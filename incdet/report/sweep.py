"""The trials of a sweep as a table: each one's values, and what they reached."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = ("old", "new", "all")


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    number: int
    values: Mapping[str, Any]  # by dotted key
    scores: Mapping[str, float | None]  # by name, in 0..1: the objective among them; None where it diverged


def best_of(rows: Sequence[TrialRow], objective: str) -> TrialRow | None:
    """The first of the rows with the highest score; None where all diverged."""
    known = [(score, -row.number, row) for row in rows if (score := row.scores[objective]) is not None]
    return max(known)[2] if known else None


def trials_markdown(rows: Sequence[TrialRow], objective: str) -> str:
    """GitHub-flavoured Markdown, best first, scores in percent."""
    keys, names = _columns(rows, objective)
    lines = [_line(["trial", *keys, *names]), _line(["---:"] * (1 + len(keys) + len(names)))]
    for row in sorted(rows, key=lambda row: (-_or_worst(row.scores[objective]), row.number)):
        scores = [_percent(row.scores[name]) for name in names]
        lines.append(_line([str(row.number), *(_short(row.values[key]) for key in keys), *scores]))
    return "\n".join(lines) + "\n"


def trials_csv(rows: Sequence[TrialRow], objective: str) -> str:
    """Unrounded, in the order of the trials, scores in 0..1."""
    keys, names = _columns(rows, objective)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trial", *keys, *names])
    for row in rows:
        scores = ["" if (score := row.scores[name]) is None else score for name in names]
        writer.writerow([row.number, *(row.values[key] for key in keys), *scores])
    return buffer.getvalue()


def _columns(rows: Sequence[TrialRow], objective: str) -> tuple[list[str], list[str]]:
    return list(rows[0].values), list(dict.fromkeys([*GROUPS, objective]))


def _or_worst(score: float | None) -> float:
    return -1.0 if score is None else score


def _percent(score: float | None) -> str:
    return "diverged" if score is None else f"{100 * score:.1f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
