"""Aligners on disk: one safetensors file beside the model, which says what they are and how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

import incdet
from incdet.align.base import Aligner
from incdet.align.baselines import MeanShift, Ridge
from incdet.align.energy import EnergyAligner
from incdet.align.gates import Link
from incdet.align.paired import PairedEnergy
from incdet.errors import CheckpointError
from incdet.files import write_atomic

KINDS: dict[str, type[Aligner]] = {kind.kind: kind for kind in (EnergyAligner, PairedEnergy, MeanShift, Ridge)}
_KEY = "incdet_aligner"


def save_chain(path: str | Path, links: Sequence[Link], **notes: Any) -> None:
    """Write aligners with their provenance as one file, whole or not at all.

    Args:
        path: ends in ``.safetensors``.
        links: oldest first, on any device; may be none.
        notes: what else belongs to the provenance of the last one, JSON-able.

    Raises:
        IncdetError: the disk is full or the folder cannot be written to.
    """
    described, tensors = [], {}
    for number, link in enumerate(links):
        aligner, more = link.aligner, notes if number == len(links) - 1 else {}
        provenance = {"incdet": incdet.__version__, **aligner.provenance, **more}
        described.append(
            {"kind": aligner.kind, "arguments": aligner.arguments, "num_old": link.num_old, "provenance": provenance}
        )
        for name, tensor in aligner.state_dict().items():
            tensors[f"{number}.{name}"] = tensor.detach().cpu().contiguous()
    # Through memory, not through the library's own file writer, whose errors hide that the disk is full.
    write_atomic(path, safetensors.torch.save(tensors, {_KEY: json.dumps(described)}))


def load_chain(path: str | Path) -> list[Link]:
    """The links that ``save_chain`` wrote, on the CPU; each ``provenance`` holds what was saved with it.

    Raises:
        CheckpointError: the file is missing, damaged, or of kinds that this version does not know.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"The aligner {path} cannot be read: {error}. It belongs beside the model.safetensors that it was fitted "
            "for: copy both. A damaged one is mended by fitting again."
        ) from error
    try:
        return [_link(entry, tensors, f"{number}.") for number, entry in enumerate(json.loads(metadata[_KEY]))]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} holds no aligners that incdet {incdet.__version__} knows ({', '.join(KINDS)}): {error!r}. Check "
            "the path, or fit again."
        ) from error


def _link(entry: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], prefix: str) -> Link:
    with torch.device("meta"):  # the file brings the tensors; no random numbers are drawn for them
        aligner = KINDS[entry["kind"]](**entry["arguments"])
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    aligner.load_state_dict(own, assign=True)
    aligner.provenance = dict(entry["provenance"])
    return Link(aligner, int(entry["num_old"]))
