"""The backbones that detection and classification share: torchvision's networks, cut into stages.

Stages follow detectron2's count: stage 1 is the stem, stage 2 is ``res2``, and so on to ``res5``, at strides 2 or 4,
4, 8, 16 and 32. ``FREEZE_AT: n`` keeps the first n fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from incdet.errors import ConfigError

RESNET_STAGES = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
# torchvision's feature indices: each stage ends where the next one halves the resolution.
MOBILENET_STAGES = (
    ("0", "1"),
    ("2", "3"),
    ("4", "5", "6"),
    ("7", "8", "9", "10", "11", "12", "13"),
    ("14", "15", "16", "17", "18"),
)
MLP_STAGES = (("flatten",), ("fc1",), ("fc2",))
NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
LEVELS = ("stem", "res2", "res3", "res4", "res5")

BLOCKS = (BasicBlock, Bottleneck, InvertedResidual)

Norm = Callable[[int], nn.Module]


class Wire(NamedTuple):
    """A convolution or linear layer of a body, and between which units it lies; all three are names of modules.

    Units are the channels of a module's output. What lies between a layer and the units that it makes acts on each
    channel alone: a norm, an activation, the addition of a block's other branch.
    """

    layer: str
    reads: str | None  # the units that are its inputs; None = the image
    makes: str  # its outputs: a block's last layers make the block's, every other makes its own


class Body(nn.ModuleDict):
    """A backbone's children under torchvision's own names, run stage by stage.

    ``forward`` returns the outputs of the stages named in ``returned``; ``frozen`` stages run without gradients and
    their result can be handed to another body with the same weights.
    """

    def __init__(
        self, children: Iterable[tuple[str, nn.Module]], stages: tuple[tuple[str, ...], ...], returned: tuple[str, ...]
    ) -> None:
        last = max(LEVELS.index(level) for level in returned)
        self_stages = stages[: last + 1]
        kept = {name for stage in self_stages for name in stage}
        super().__init__({name: child for name, child in children if name in kept})
        self.stages = self_stages
        self.returned = returned
        self.frozen_stages = 0

    def run(self, x: Tensor, first: int, last: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Stages ``first`` to ``last`` (exclusive): the running tensor and the outputs to be returned."""
        outputs = {}
        for level, stage in zip(LEVELS[first:last], self.stages[first:last], strict=True):
            for name in stage:
                x = self[name](x)
            if level in self.returned:
                outputs[level] = x
        return x, outputs

    def frozen_pass(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The stages that do not train."""
        with torch.no_grad():
            return self.run(x, 0, self.frozen_stages)

    def forward(self, x: Tensor, frozen: tuple[Tensor, dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        x, outputs = frozen if frozen is not None else self.frozen_pass(x)
        _, rest = self.run(x, self.frozen_stages, len(self.stages))
        return {**outputs, **rest}

    def freeze(self, stages: int) -> None:
        """Keep the first ``stages`` stages fixed and let the others train."""
        self.frozen_stages = min(stages, len(self.stages))
        for index, stage in enumerate(self.stages):
            for name in stage:
                self[name].requires_grad_(index >= self.frozen_stages)

    def frozen_modules(self) -> dict[str, nn.Module]:
        return {name: self[name] for stage in self.stages[: self.frozen_stages] for name in stage}

    def wires(self) -> list[Wire]:
        """Every layer, in the order of the computation."""
        wires: list[Wire] = []
        inside: tuple[str, ...] = ()  # the block that was last begun
        reads = None
        for name, module in self.named_modules():
            if isinstance(module, BLOCKS):
                wires += _wires_of_block(name, module, reads)
                inside, reads = (f"{name}.",), name
            elif isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(inside):
                wires.append(Wire(name, reads, _units_of(name)))
                reads = wires[-1].makes
        return wires


def _wires_of_block(name: str, block: nn.Module, reads: str | None) -> list[Wire]:
    """A chain of layers whose last makes the block's own units, and so does the shortcut's, if it has a layer."""
    layers = [path for path, part in block.named_modules(prefix=name) if isinstance(part, nn.Conv2d)]
    shortcut = [path for path in layers if path.startswith(f"{name}.downsample.")]
    chain = [path for path in layers if path not in shortcut]
    makes = [*map(_units_of, chain[:-1]), name]
    return [*map(Wire, chain, [reads, *makes], makes), *(Wire(path, reads, name) for path in shortcut)]


def _units_of(layer: str) -> str:
    """The module whose output is complete but for an activation: the norm of ``conv1``, or the sequence it is in."""
    path, _, last = layer.rpartition(".")
    return layer.removesuffix(last) + last.replace("conv", "bn") if last.startswith("conv") else path


class NarrowResNet(ResNet):
    """torchvision's ResNet with another number of channels in its stem (64 gives the standard network)."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], layers: list[int], norm: Norm, width: int) -> None:
        super().__init__(block, layers, norm_layer=norm)
        classes = 1000  # ImageNet's, torchvision's default
        if width != 64:
            self.inplanes = width
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.bn1 = norm(width)
            for index, blocks in enumerate(layers):
                layer = self._make_layer(block, width << index, blocks, stride=1 if index == 0 else 2)
                setattr(self, f"layer{index + 1}", layer)
            self.fc = nn.Linear(self.inplanes, classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build_norm(name: str) -> Norm:
    """A normalisation layer by its config name.

    Raises:
        ConfigError: the name is not known.
    """
    norms: dict[str, Norm] = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d, "none": _no_norm}
    if name not in norms:
        raise ConfigError(f"MODEL.BACKBONE.NORM: expected one of {', '.join(norms)}, got {name!r}.")
    return norms[name]


def _no_norm(_: int) -> nn.Module:
    return nn.Identity()


def build_network(cfg: CfgNode) -> nn.Module:
    """The whole classification network that ``MODEL.BACKBONE`` describes, torchvision's names and initialisation.

    Raises:
        ConfigError: name, norm or width is not known for this network.
    """
    node = cfg.MODEL.BACKBONE
    norm = build_norm(node.NORM)
    if node.NAME not in NETWORKS:
        raise ConfigError(f"MODEL.BACKBONE.NAME: expected one of {', '.join(NETWORKS)}, got {node.NAME!r}.")
    if node.NAME == "resnet18":
        network: nn.Module = NarrowResNet(BasicBlock, [2, 2, 2, 2], norm, node.WIDTH)
    elif node.NAME == "resnet50":
        network = NarrowResNet(Bottleneck, [3, 4, 6, 3], norm, node.WIDTH)
    else:
        if node.WIDTH != 64:
            raise ConfigError(f"MODEL.BACKBONE.WIDTH is for ResNets; mobilenet_v2 takes only 64, got {node.WIDTH}.")
        network = MobileNetV2(norm_layer=norm)
    if node.STRIDE_IN_1X1:
        _stride_in_1x1(network)
    if node.NORM == "none":
        _give_biases(network)
    return network


def build_body(cfg: CfgNode, returned: tuple[str, ...]) -> tuple[Body, dict[str, int], nn.Module]:
    """The network cut into stages.

    Returns:
        The body up to the deepest level in ``returned``, the channels of each returned level, and the network itself
        (a C4 head takes its last stage).
    """
    network = build_network(cfg)
    if isinstance(network, ResNet):
        body = Body(network.named_children(), RESNET_STAGES, returned)
    else:
        body = Body(network.features.named_children(), MOBILENET_STAGES, returned)  # type: ignore[union-attr]
    with torch.no_grad():
        training = body.training
        channels = {level: out.shape[1] for level, out in body.eval()(torch.zeros(1, 3, 64, 64)).items()}
        body.train(training)
    return body, channels, network


def build_mlp(cfg: CfgNode) -> Body:
    """Two layers of ``BACKBONE.WIDTH`` units on square images, for digits: (N, 3, s, s) to (N, WIDTH)."""
    width, pixels = cfg.MODEL.BACKBONE.WIDTH, 3 * cfg.INPUT.MIN_SIZE_TEST**2
    layers = {
        "flatten": nn.Flatten(),
        "fc1": nn.Sequential(nn.Linear(pixels, width), nn.ReLU()),
        "fc2": nn.Sequential(nn.Linear(width, width), nn.ReLU()),
    }
    return Body(layers.items(), MLP_STAGES, ("res3",))


def _stride_in_1x1(network: nn.Module) -> None:
    """Let bottlenecks step in their first convolution, as the networks of MSRA's weights do."""
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _give_biases(network: nn.Module) -> None:
    """Convolutions that follow no norm need a bias: the place where a folded norm's shift goes."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_channels))


class FpnBackbone(nn.Module):
    """A body and a feature pyramid on top; ``state_dict`` keys as torchvision's ``BackboneWithFPN``."""

    def __init__(self, body: Body, channels: dict[str, int], out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(channels.values()), out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: Tensor, frozen: tuple[Tensor, dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        return self.fpn(self.body(x, frozen))


class C4Backbone(nn.Module):
    """A body whose last returned level alone feeds proposals and regions."""

    def __init__(self, body: Body, channels: dict[str, int]) -> None:
        super().__init__()
        self.body = body
        (self.out_channels,) = channels.values()

    def forward(self, x: Tensor, frozen: tuple[Tensor, dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        return self.body(x, frozen)
