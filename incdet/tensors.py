"""Tensors on disk beside a model: one safetensors file that says what it holds, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from incdet.errors import CheckpointError
from incdet.files import write_atomic

_KEY = "incdet_"


def save_tensors(path: str | Path, kind: str, tensors: Mapping[str, Tensor], notes: Any) -> None:
    """Write tensors, on any device, with what is to be known of them.

    Args:
        path: ends in ``.safetensors``.
        kind: what the file holds, one word; ``load_tensors`` asks for the same.
        tensors: by name; may be none.
        notes: JSON-able.

    Raises:
        IncdetError: the disk is full or the folder cannot be written to.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Through memory, not through the library's own file writer, whose errors hide that the disk is full.
    write_atomic(path, safetensors.torch.save(stored, {_KEY + kind: json.dumps(notes)}))


def load_tensors(path: str | Path, kind: str, remedy: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors, on the CPU, and the notes that ``save_tensors`` wrote.

    Args:
        path: of the file.
        kind: what it is to hold.
        remedy: how to come by a whole one, a sentence for the error's end.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})[_KEY + kind])
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118  not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} ({kind}) cannot be read: {error}. {remedy}") from error
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a file of {kind} that incdet wrote, found another safetensors file. {remedy}"
        ) from error


def bytes_beside(model: Path) -> int:
    """Bytes of the safetensors files that lie in a model's folder beside the model's own.

    What a method keeps for later tasks, or for the model's predictions, is written there anew by each task, with all
    that it still needs of the earlier ones, so that one folder tells all.

    Args:
        model: the path of the model's file; it need not exist.
    """
    return sum(file.stat().st_size for file in model.parent.glob("*.safetensors") if file.name != model.name)
