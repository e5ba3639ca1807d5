"""The few numbers that belong on the terminal at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METRICS = {
    "voc_area_50": "AP50 (area)",
    "voc_11point_50": "AP50 (11-point)",
    "coco": "AP [.5:.95]",
    "top1": "top-1",
    "top1_task": "top-1 in the task",
    "multi_label_ap": "multi-label mAP",
}


def print_summary(results: Mapping[str, Any]) -> None:
    """Old, new and all after the last task, and what the first task's classes scored when they were learned."""
    print(f"\n{results['name']}, {results['protocol']['split']}, {results['protocol']['protocol']}, in percent")
    print(f"{'':18}{'base':>8}{'old':>8}{'new':>8}{'all':>8}{'forgotten':>11}")
    for metric, title in METRICS.items():
        if metric not in results["summary"]:
            continue
        summary = results["summary"][metric]
        row = (results["matrix"][metric][0][0], *(summary[key] for key in ("old", "new", "all")))
        cells = "".join(f"{_percent(value):>8}" for value in row)
        print(f"{title:18}{cells}{_percent(summary['forgetting']):>11}")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
