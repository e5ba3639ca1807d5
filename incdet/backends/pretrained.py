"""``MODEL.WEIGHTS`` into a new detector or classifier: the backbone goes from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from incdet.backends.names import Pixels, same_mean
from incdet.backends.weights import Stored, load_into, read_weights, torchvision_tensors
from incdet.errors import CheckpointError


def load_pretrained(model: nn.Module, cfg: CfgNode, path: str) -> None:
    """Load a file into a model on a shared backbone and print what became of each tensor.

    Args:
        model: built from ``cfg``.
        cfg: with ``MODEL.WEIGHTS``, what the messages call the file.
        path: of the file, see ``read_weights``.

    Raises:
        CheckpointError: the weights cannot be had or read, or are of another backbone.
    """
    source = cfg.MODEL.WEIGHTS
    stored = read_weights(path)
    refuse_another_backbone(stored, cfg)
    report = load_into(model, torchvision_tensors(stored, pixels_of(cfg, stored)), source=source)
    print(f"{source}: {report}")


def pixels_of(cfg: CfgNode, stored: Stored) -> Pixels:
    """What a model sees; says so where a file's network saw something that no rewriting makes the same."""
    ours, theirs = Pixels(cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD), stored.pixels
    if theirs is not None and not same_mean(theirs, ours):
        print(
            f"{cfg.MODEL.WEIGHTS} was trained with MODEL.PIXEL_MEAN {list(theirs.mean)} ({theirs.order}), here it is "
            f"{list(ours.mean)} ({ours.order}): its features are not what they were. Set it to the file's values."
        )
    return ours


def refuse_another_backbone(stored: Stored, cfg: CfgNode) -> None:
    """Compare the backbones of a file that says what it holds.

    Raises:
        CheckpointError: they differ in what ``MODEL.BACKBONE`` says of the network.
    """
    if stored.config is None:
        return
    theirs, ours = _network(stored.config["MODEL"]), _network(cfg.MODEL)
    differing = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    if differing:
        lines = "; ".join(f"{key} is {theirs[key]} in the file and {ours[key]} here" for key in differing)
        raise CheckpointError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is of another backbone than the model: {lines}. Set them to the file's "
            "values, or choose other MODEL.WEIGHTS."
        )


def _network(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide which function a backbone's tensors are."""
    node = model["BACKBONE"]
    if node["NAME"].startswith("build_"):  # Detectron2's own: the shapes say the rest
        return {"STRIDE_IN_1X1": model["RESNETS"]["STRIDE_IN_1X1"]}
    own = {"MODEL.BACKBONE.NAME": node["NAME"], "MODEL.BACKBONE.WIDTH": node["WIDTH"]}
    own["whether MODEL.BACKBONE.NORM is none"] = node["NORM"] == "none"
    return own | ({"STRIDE_IN_1X1": node["STRIDE_IN_1X1"]} if node["NAME"] == "resnet50" else {})
