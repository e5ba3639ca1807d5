"""Aligners on disk: one safetensors file that says what it is and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

import incdet
from incdet.align.base import Aligner
from incdet.align.baselines import MeanShift, Ridge
from incdet.align.energy import EnergyAligner
from incdet.errors import CheckpointError
from incdet.files import write_atomic

KINDS: dict[str, type[Aligner]] = {kind.kind: kind for kind in (EnergyAligner, MeanShift, Ridge)}
_KEY = "incdet_aligner"


def save_aligner(path: str | Path, aligner: Aligner, num_old: int, **notes: Any) -> None:
    """Write an aligner with its provenance, whole or not at all.

    Args:
        path: ends in ``.safetensors``.
        aligner: of a kind in ``KINDS``, on any device.
        num_old: how many classes the previous model knew.
        notes: what else belongs to the provenance, JSON-able.

    Raises:
        IncdetError: the disk is full or the folder cannot be written to.
    """
    provenance = {**aligner.provenance, **notes, "num_old": num_old, "incdet": incdet.__version__}
    description = {"kind": aligner.kind, "arguments": aligner.arguments, "provenance": provenance}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in aligner.state_dict().items()}
    # Through memory, not through the library's own file writer, whose errors hide that the disk is full.
    write_atomic(path, safetensors.torch.save(tensors, {_KEY: json.dumps(description)}))


def load_aligner(path: str | Path) -> Aligner:
    """The aligner that ``save_aligner`` wrote, on the CPU; ``provenance`` holds what was saved with it.

    Raises:
        CheckpointError: the file is missing, damaged, or not an aligner of this version's kinds.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"The aligner {path} cannot be read: {error}. Check the path; a damaged file is mended by fitting again."
        ) from error
    try:
        description = json.loads(metadata[_KEY])
        with torch.device("meta"):  # the file brings the tensors; no random numbers are drawn for them
            aligner = KINDS[description["kind"]](**description["arguments"])
        aligner.load_state_dict(tensors, assign=True)
        aligner.provenance = dict(description["provenance"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not an aligner that incdet {incdet.__version__} knows ({', '.join(KINDS)}): {error!r}. Check "
            "the path, or fit the aligner again."
        ) from error
    return aligner
