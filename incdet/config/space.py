"""The space that a sweep searches: a YAML file of dotted keys, each with a range or choices.

.. code-block:: yaml

    METHOD.PSEUDO_LABEL.SCORE_ROI: {low: 0.3, high: 0.9}
    SOLVER.BASE_LR: {low: 1e-4, high: 1e-2, log: true}
    NEXT_TASKS.SOLVER.MAX_ITER: {choices: [250, 400]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from incdet.config.node import NEXT_TASKS, CfgNode, config_for_task, read_yaml
from incdet.errors import ConfigError

# What says which problem is solved, how it is measured and where the files lie. To search among seeds, or among test
# images, would be to choose the luckiest.
FIXED = ("BACKEND", "DATASETS", "FIRST_TASK_CACHE", "NAME", "OUTPUT_DIR", "SEED", "STAMPS", "TASK", "TASKS", "VERSION")


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, both included; whole ones where both are whole."""

    low: float
    high: float
    log: bool = False  # drawn uniformly in the logarithm

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choices:
    """Some values, in no order."""

    values: tuple[Any, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.values


Space = Mapping[str, Range | Choices]


def read_space(path: str | Path, cfg: CfgNode) -> Space:
    """The space in the YAML file ``path``, its values in the types that ``cfg`` has at their keys.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or decides what is measured, or its values do not fit.
    """
    path = Path(path)
    space = {str(key): _read_entry(str(key), entry, cfg, path) for key, entry in read_yaml(path).items()}
    if not space:
        raise ConfigError(
            f"{path} names no key to search, e.g. `SOLVER.BASE_LR: {{low: 1e-4, high: 1e-2, log: true}}`."
        )
    return space


def values_in(cfg: CfgNode, space: Space) -> dict[str, Any] | None:
    """The values that ``cfg`` has at the space's keys; None where one of them lies outside."""
    values = {}
    for key, allowed in space.items():
        section, _, rest = key.partition(".")
        of_task, plain = (2, rest) if section == NEXT_TASKS else (1, key)
        values[key] = _value_at(config_for_task(cfg, of_task), plain)
        if values[key] not in allowed:
            return None
    return values


def _read_entry(key: str, entry: Any, cfg: CfgNode, path: Path) -> Range | Choices:
    section = key.removeprefix(f"{NEXT_TASKS}.").partition(".")[0]
    if section in FIXED:
        raise ConfigError(
            f"{path}: {key} belongs to the problem and to how it is measured, which all trials share. Take it out."
        )
    if isinstance(entry, dict) and entry.keys() == {"choices"}:
        return _read_choices(key, entry["choices"], cfg, path)
    if isinstance(entry, dict) and {"low", "high"} <= entry.keys() <= {"low", "high", "log"}:
        return _read_range(key, entry, cfg, path)
    raise ConfigError(
        f"{path}: {key}: expected {{low: ..., high: ...}}, with log: true where magnitudes count, or {{choices: "
        f"[...]}}, got {entry!r}."
    )


def _read_range(key: str, entry: Mapping[str, Any], cfg: CfgNode, path: Path) -> Range:
    low, high = (_fitting(key, entry[end], cfg, path) for end in ("low", "high"))
    log = entry.get("log", False)
    numbers = all(
        isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)
    )
    if not numbers or low >= high:
        raise ConfigError(f"{path}: {key}: expected numbers with low below high, got low {low!r} and high {high!r}.")
    if not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(
            f"{path}: {key}: log is true or false, and a range with log: true begins above 0; got log {log!r} and low "
            f"{low!r}."
        )
    return Range(low, high, log)


def _read_choices(key: str, values: Any, cfg: CfgNode, path: Path) -> Choices:
    if not isinstance(values, list) or len(values) < 2:
        raise ConfigError(f"{path}: {key}: choices are a list of at least two values, got {values!r}.")
    fitting = tuple(_fitting(key, value, cfg, path) for value in values)
    if any(value in fitting[:place] for place, value in enumerate(fitting)):
        raise ConfigError(f"{path}: {key}: every choice is to be given once, got {values!r}.")
    return Choices(fitting)


def _fitting(key: str, value: Any, cfg: CfgNode, path: Path) -> Any:
    """``value`` as the configuration takes it."""
    trial = cfg.clone()
    trial.merge_from_other_cfg({key: value}, where=f"in {path}")
    return _value_at(trial, key)


def _value_at(cfg: CfgNode, key: str) -> Any:
    return reduce(getitem, key.split("."), cfg)
