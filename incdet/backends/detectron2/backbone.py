"""The backbones shared with classification, in Detectron2's backbone registry under their own names.

``MODEL.BACKBONE.NAME: resnet18``, ``resnet50`` or ``mobilenet_v2`` builds torchvision's network with an FPN or cut
after ``res4``, as ``MODEL.NECK`` says. Detectron2's own ResNets stay beside them under their names.
"""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.common.config import CfgNode

from incdet.backends.backbone import LEVELS, NETWORKS, C4Backbone, FpnBackbone, build_body
from incdet.errors import ConfigError

STRIDES = dict(zip(LEVELS[1:], (4, 8, 16, 32), strict=True))
TOP = "pool"  # the pyramid's last level, half the resolution of the deepest one below it


class SharedFpn(FpnBackbone, Backbone):
    """A shared network with a feature pyramid."""

    size_divisibility = 32  # torchvision's padding, so that both backends see the same pixels

    def output_shape(self) -> dict[str, ShapeSpec]:
        strides = {level: STRIDES[level] for level in self.body.returned}
        strides[TOP] = 2 * max(strides.values())
        return {level: ShapeSpec(channels=self.out_channels, stride=stride) for level, stride in strides.items()}


class SharedC4(C4Backbone, Backbone):
    """A shared network up to ``res4``."""

    size_divisibility = 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        (level,) = self.body.returned
        return {level: ShapeSpec(channels=self.out_channels, stride=STRIDES[level])}


def build_shared_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The backbone that ``MODEL.BACKBONE`` and ``MODEL.NECK`` describe, its first stages frozen.

    Raises:
        ConfigError: an unknown neck.
    """
    neck = cfg.MODEL.NECK
    if neck not in ("fpn", "c4"):
        raise ConfigError(f"MODEL.NECK: expected fpn or c4, got {neck!r}.")
    levels = tuple(cfg.MODEL.FPN.IN_FEATURES) if neck == "fpn" else ("res4",)
    body, channels, _ = build_body(cfg, levels)
    body.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return SharedFpn(body, channels, cfg.MODEL.FPN.OUT_CHANNELS) if neck == "fpn" else SharedC4(body, channels)


for _name in NETWORKS:
    BACKBONE_REGISTRY._do_register(_name, build_shared_backbone)
