"""Weights for Detectron2's models from the files the field uses, and incdet's files for Detectron2's tools."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from fvcore.common.config import CfgNode
from torch import nn

from incdet.backends import pretrained
from incdet.backends.backbone import NETWORKS
from incdet.backends.names import BODY, State, match_names, torchvision_name
from incdet.backends.weights import TORCHVISION, load_into, read_weights, torchvision_tensors
from incdet.errors import CheckpointError

# From incdet's shared backbones and C4 heads to a bare ResNet's names.
_TORCHVISION_PLACES = ((BODY, ""), ("roi_heads.box_head.", "layer4."))


class IncdetCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also reads incdet's ``model.safetensors``, and runs no code from a pickle."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith((".pkl", ".safetensors")):
            return super()._load_file(filename)
        stored = read_weights(filename)
        author = "Caffe2" if stored.caffe2 else ""
        heuristics = stored.caffe2 or stored.by_suffix
        return {"model": dict(stored.tensors), "__author__": author, "matching_heuristics": heuristics}


def load_pretrained(detector: nn.Module, cfg: CfgNode) -> None:
    """Load ``MODEL.WEIGHTS`` and print what became of each tensor.

    Args:
        detector: built from ``cfg``.
        cfg: with ``MODEL.WEIGHTS`` as for torchvision's backend, or a name of Detectron2's (``detectron2://...``).

    Raises:
        CheckpointError: the weights cannot be had or read, or nothing in them fits.
    """
    source = cfg.MODEL.WEIGHTS
    path = _local(source)
    if cfg.MODEL.BACKBONE.NAME in NETWORKS:
        return pretrained.load_pretrained(detector, cfg, path)
    stored = read_weights(path)
    tensors = stored.tensors
    if stored.caffe2 or stored.by_suffix:
        tensors = align_and_update_state_dicts(detector.state_dict(), tensors, c2_conversion=stored.caffe2)
    elif stored.config is not None:
        pretrained.refuse_another_backbone(stored, cfg)
        tensors = _as_called_here(torchvision_tensors(stored, pretrained.pixels_of(cfg, stored)), detector)
    report = load_into(detector, tensors, prefixes=(), source=source)
    print(f"{source}: {report}")


def _as_called_here(tensors: State, detector: nn.Module) -> State:
    """Tensors under torchvision's names as Detectron2's own ResNet calls them; others keep their names."""
    places = {torchvision_name(name): name for name in detector.state_dict()}
    renamed, others = match_names(tensors, places, _TORCHVISION_PLACES)
    return {places[name]: tensor for name, tensor in renamed.items()} | {name: tensors[name] for name in others}


def _local(source: str) -> str:
    """A file of this machine, fetched by Detectron2 where ``source`` is one of its addresses."""
    if "://" not in source or source.startswith(TORCHVISION):
        return source
    try:
        return PathManager.get_local_path(source)
    except Exception as error:  # every protocol fails in its own way
        raise CheckpointError(
            f"MODEL.WEIGHTS: {source} could not be fetched: {error}. Connect, or fetch that file elsewhere and set "
            "MODEL.WEIGHTS to its path."
        ) from error
