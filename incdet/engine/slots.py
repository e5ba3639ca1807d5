"""What methods put between a detector's region features and its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fvcore.common.config import CfgNode
from torch import nn

from incdet.backends import load_detector
from incdet.backends.base import Detector, RegionTransform
from incdet.backends.classifier import Classifier
from incdet.config import get_cfg
from incdet.methods import build_methods
from incdet.methods.base import Method


def load_predictor(path: Path) -> tuple[Detector, tuple[str, ...], CfgNode]:
    """The detector of a ``model.safetensors`` as it was tested: with what its methods kept beside the file.

    Returns:
        The detector, its classes in the order of its labels, and its configuration.

    Raises:
        CheckpointError: the file, or what belongs beside it, is missing, damaged or not incdet's.
    """
    detector, classes, cfg = load_detector(path, get_cfg())
    install_slots(detector, build_methods(cfg), path.parent)
    return detector, classes, cfg


def install_slots(detector: Detector, methods: Sequence[Method], folder: Path) -> None:
    """Give the detector its aligner, its other reading and its heads' conditions, where a method has them.

    Args:
        detector: a trained one, on its device.
        methods: that it was trained with.
        folder: of its file.

    Raises:
        CheckpointError: what a method kept beside the model is missing or damaged.
    """
    device = next(detector.parameters()).device
    for slot, hook in (("region_transform", "aligner"), ("read_out", "read_out")):
        found = (getattr(method, hook)(folder) for method in methods)
        reading: RegionTransform | None = next((one for one in found if one is not None), None)
        if isinstance(reading, nn.Module):
            reading = partial(reading.to(device))  # a module would become a part of the detector and of its weights
        setattr(detector, slot, reading)
    if isinstance(detector, Classifier):
        found_conditions = (method.conditions(folder) for method in methods)
        detector.conditions = next((conditions for conditions in found_conditions if conditions is not None), None)
