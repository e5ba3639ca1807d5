"""What aligning was worth, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

METRIC = "voc_area_50"


def alignment_table(studies: Sequence[Mapping[str, Any]]) -> str:
    """Rows of aligner and gate, averaged over studies (of seeds, say), in Markdown."""
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for study in studies:
        for reading in study["readings"]:
            rows.setdefault((reading["aligner"], reading["gate"]), []).append(reading)
    lines = [
        "| aligner | gate | old AP50 | new AP50 | all AP50 | regions moved | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (aligner, gate), readings in rows.items():
        cells = [_mean([reading["groups"][METRIC][group] for reading in readings]) for group in ("old", "new", "seen")]
        stamp = "".join(f" [{stamp.upper()}]" for stamp in readings[0]["stamps"])
        moved = round(statistics.mean(reading["moved"] for reading in readings))
        seconds = statistics.mean(reading["seconds"] for reading in readings)
        lines.append(
            f"| {aligner or 'none'} | {gate or '–'}{stamp} | {' | '.join(cells)} | {moved:,} | {seconds:.2f} |"
        )
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> str:
    """Percent, with the deviation where there are several."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"
