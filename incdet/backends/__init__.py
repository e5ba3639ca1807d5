"""Detectors by configuration. A backend's library is imported only when it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from incdet.backends.base import Detector
from incdet.backends.pretrained import load_pretrained
from incdet.backends.weights import load_into, read_model
from incdet.errors import CheckpointError, ConfigError

BACKENDS = ("torchvision", "detectron2")
TASKS = ("detection", "classification")


def build_detector(cfg: CfgNode, num_classes: int) -> Detector:
    """The detector or classifier that ``TASK``, ``BACKEND`` and ``MODEL`` describe, with ``MODEL.WEIGHTS`` loaded.

    Raises:
        ConfigError: the backend is not known, or cannot honour a key.
        CheckpointError: the weights cannot be read or nothing in them fits.
    """
    if cfg.BACKEND not in BACKENDS:
        raise ConfigError(f"BACKEND: expected one of {', '.join(BACKENDS)}, got {cfg.BACKEND!r}.")
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ConfigError(f"INPUT.FORMAT: expected RGB or BGR, got {cfg.INPUT.FORMAT!r}.")
    if cfg.TASK not in TASKS:
        raise ConfigError(f"TASK: expected one of {', '.join(TASKS)}, got {cfg.TASK!r}.")
    if cfg.BACKEND == "detectron2" and cfg.TASK == "classification":
        raise ConfigError("TASK classification has a model of incdet's own: leave BACKEND at torchvision.")
    if cfg.BACKEND == "detectron2":
        from incdet.backends.detectron2 import build_detectron2

        return build_detectron2(cfg, num_classes)
    _refuse_strays(cfg)
    detector = _build(cfg, num_classes)
    if cfg.MODEL.WEIGHTS:
        load_pretrained(detector, cfg, cfg.MODEL.WEIGHTS)
    return detector


def _build(cfg: CfgNode, num_classes: int) -> Detector:
    if cfg.TASK == "classification":
        from incdet.backends.classifier import build_classifier

        return build_classifier(cfg, num_classes)
    from incdet.backends.torchvision import build_torchvision

    return build_torchvision(cfg, num_classes)


def _refuse_strays(cfg: CfgNode) -> None:
    strays = [f"  {key} ({cfg.origin(key)})" for key in cfg.strays()]
    if strays:
        raise ConfigError(
            "BACKEND torchvision cannot honour these keys, which only Detectron2 knows; leave them out or set BACKEND "
            "detectron2:\n" + "\n".join(strays)
        )


def load_detector(path: Path, defaults: CfgNode) -> tuple[Detector, tuple[str, ...], CfgNode]:
    """A detector from the file that incdet saved, which carries its classes and its configuration.

    Args:
        path: ``model.safetensors`` of a task.
        defaults: ``get_cfg()``, into which the stored configuration is merged.

    Raises:
        CheckpointError: the file is damaged or was not written by incdet.
    """
    state, metadata = read_model(path)
    if not {"classes", "config"} <= metadata.keys():
        raise CheckpointError(
            f"{path} carries no classes and no configuration, so it was not written by incdet. To start from other "
            "weights, set MODEL.WEIGHTS in a training configuration."
        )
    classes = tuple(json.loads(metadata["classes"]))
    cfg = defaults.clone()
    cfg.merge_from_other_cfg(yaml.safe_load(metadata["config"]))
    bare = cfg.clone()
    bare.MODEL.WEIGHTS = ""  # everything is in this file
    detector = build_detector(bare, len(classes))
    load_into(detector, state, strict=True, source=str(path))
    return detector.eval(), classes, cfg
