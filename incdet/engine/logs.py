"""What a run tells while it trains: ``metrics.jsonl``, a progress bar, TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from incdet.files import explain_refusal, write_atomic


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, the source of truth for curves.

    Lines written after the state that a run resumes from belong to steps that will be taken again; they are dropped.
    """

    def __init__(self, path: Path, task: int, iteration: int) -> None:
        self.path = path
        kept = [line for line in self._lines() if (line["task"], line["iteration"]) < (task, iteration)]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._writer = _tensorboard_writer(path.parent)

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the line that a killed run was writing
                break
        return lines

    def write(self, task: int, iteration: int, values: dict[str, float]) -> None:
        line = {"task": task, "iteration": iteration, **{k: round(float(v), 6) for k, v in values.items()}}
        with explain_refusal(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"task_{task}/{name}", float(value), iteration)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


class Progress:
    """The progress bar of a task: losses, learning rate, images per second; tqdm adds the time left."""

    def __init__(self, title: str, start: int, stop: int, show: bool) -> None:
        self.bar = tqdm(total=stop, initial=start, desc=title, disable=not show, unit="it", dynamic_ncols=True)
        self.images = 0
        self.began = time.perf_counter()

    def advance(self, images: int) -> None:
        self.images += images
        self.bar.update()

    def show(self, losses: dict[str, float], rate: float) -> float:
        """Write the losses beside the bar; returns the throughput in images per second."""
        throughput = self.images / max(time.perf_counter() - self.began, 1e-9)
        terms = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        self.bar.set_postfix_str(f"{terms} lr {rate:.2g} {throughput:.1f} img/s")
        return throughput

    def close(self) -> None:
        self.bar.close()
