"""A run beside other runs: joint training of all classes, and tasks that were learned each by itself.

All functions take the content of ``results.json`` files, and give further entries of its ``summary``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from incdet.errors import DataError
from incdet.evaluation import incremental

Results = Mapping[str, Any]
Summary = dict[str, dict[str, float | None]]  # by metric


def against_joint(run: Results, joint: Results) -> Summary:
    """What is lost against joint training; one joint model of all classes serves every step of Omega (ours).

    Raises:
        DataError: the joint run has not learned all classes, or was tested on other images.
    """
    _check_comparable(run, joint)
    tasks = run["protocol"]["tasks"][: len(run["tasks"])]
    seen = [[name for names in tasks[: step + 1] for name in names] for step in range(len(tasks))]
    old, new = seen[-2] if len(seen) > 1 else [], tasks[-1]
    summary: Summary = {}
    for metric, matrix in run["matrix"].items():
        steps = [task["ap"][metric] for task in run["tasks"]]
        reference = joint["tasks"][-1]["ap"].get(metric, {})
        ours_seen = [incremental.mean_ap(ap, names) for ap, names in zip(steps, seen, strict=True)]
        joint_seen, joint_tasks = (
            [incremental.mean_ap(reference, names) for names in groups] for groups in (seen, tasks)
        )
        summary[metric] = {
            "joint": joint_seen[-1],
            "abs_gap": incremental.absolute_gap(joint_seen[-1], ours_seen[-1]),
            "rel_gap": incremental.relative_gap(joint_seen[-1], ours_seen[-1]),
            "omega_all": incremental.omega(ours_seen, joint_seen),
            "omega_base": incremental.omega([row[0] for row in matrix], [joint_tasks[0]] * len(tasks)),
            "omega_new": incremental.omega([row[-1] for row in matrix], joint_tasks),
            "rsd": incremental.relative_deficit(reference, steps[-1], old),
            "rpd": incremental.relative_deficit(reference, steps[-1], new),
        }
    return summary


def against_independent(run: Results, independent: Results) -> Summary:
    """What it is worth to a task that others were learned before it.

    Raises:
        DataError: the independent run has not learned all tasks, or was tested on other images.
    """
    _check_comparable(run, independent)
    alone = {metric: [row[-1] for row in matrix] for metric, matrix in independent["matrix"].items()}
    return {
        metric: {"fwt": incremental.forward_transfer(matrix, alone[metric][: len(matrix)])}
        for metric, matrix in run["matrix"].items()
        if metric in alone
    }


def _check_comparable(run: Results, other: Results) -> None:
    name, tasks = other["name"], run["protocol"]["tasks"]
    missing = sorted({c for names in tasks for c in names} - set(next(iter(other["tasks"][-1]["ap"].values()), {})))
    if missing:
        raise DataError(f"the run '{name}' has not learned {', '.join(missing)} yet: resume it before it is compared")
    theirs, ours = other["protocol"].get("test"), run["protocol"].get("test")
    if theirs != ours:
        raise DataError(f"the run '{name}' was tested on {theirs}, '{run['name']}' on {ours}: test both on one set")
