"""Whether two run folders hold the same run."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

# What may differ between two lives of one run: the clock, and the checkout of incdet in use.
FREE = ("seconds", "collect_seconds", "fit_seconds", "train_seconds", "img_per_s", "commit")


def differences(folder: Path, other: Path) -> list[str]:
    """Names of the files that differ in anything but times; weights, predictions and memories must agree to the bit."""
    names = {str(path.relative_to(root)) for root in (folder, other) for path in root.rglob("*") if _counts(path)}
    return sorted(name for name in names if not _equal(folder / name, other / name))


def _counts(path: Path) -> bool:
    return path.is_file() and path.parent.name != "tensorboard" and path.name not in ("config.yaml", "report.html")


def _equal(path: Path, other: Path) -> bool:
    if not path.exists() or not other.exists():
        return False
    if path.suffix == ".safetensors":
        mine, theirs = load_file(path), load_file(other)
        return mine.keys() == theirs.keys() and all(mine[key].equal(theirs[key]) for key in mine)
    if path.suffix in (".json", ".jsonl"):
        return [_timeless(v) for v in _values(path)] == [_timeless(v) for v in _values(other)]
    return path.read_bytes() == other.read_bytes()


def _values(path: Path) -> list[Any]:
    text = path.read_text()
    return [json.loads(part) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in FREE}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
