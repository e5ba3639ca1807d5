"""The state that a killed task resumes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import Precision
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from incdet.errors import CheckpointError
from incdet.files import atomic_path
from incdet.methods.base import Method


@dataclass(frozen=True)
class TaskState:
    """All that changes while a task is learned; what is random follows from the iteration number."""

    student: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None
    precision: Precision  # the loss scale of 16-mixed
    methods: Sequence[Method] = ()

    def save(self, path: Path, iteration: int, seconds: float) -> None:
        """Write ``state.pt`` in one step; the previous state stays until the new one is whole."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        # Through a file object: given a path, torch.save hides that the disk is full behind a message of its own.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save({"iteration": iteration, "seconds": seconds, **state}, file)

    def restore(self, path: Path) -> tuple[int, float]:
        """The iteration to go on from, and the seconds spent before; (0, 0) where there is no state.

        Raises:
            CheckpointError: the file is truncated, of another model, or anything but tensors and plain values.
        """
        if not path.exists():
            return 0, 0.0
        try:
            # Only tensors and plain values are accepted, never code.
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            return int(state["iteration"]), float(state["seconds"])
        except Exception as error:  # the reader fails in every possible way on a file that was cut short
            reason = str(error).partition("\n")[0] or "it is empty"
            raise CheckpointError(
                f"{path} cannot be used to resume: it is damaged or not a state of this run "
                f"({type(error).__name__}: {reason}). Delete it to start its task again."
            ) from error

    def _parts(self) -> dict[str, Any]:
        parts = {"student": self.student, "optimizer": self.optimizer, "precision": self.precision}
        parts |= {f"method {type(method).__name__}": method for method in self.methods}
        return parts if self.average is None else {**parts, "average": self.average}
