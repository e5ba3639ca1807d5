"""The state that a killed task resumes from, and the model that a finished task leaves."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from incdet.errors import CheckpointError
from incdet.files import atomic_path


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state.pt`` in one step; the previous state stays until the new one is whole."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read ``state.pt``; only tensors and plain values are accepted, never code.

    Raises:
        CheckpointError: the file is truncated, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be used to resume: it is truncated or not a state that incdet wrote "
            f"({str(error).splitlines()[0]}). Delete it to start its task again."
        ) from error
