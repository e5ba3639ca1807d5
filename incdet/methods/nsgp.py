"""NSGP: backbone and neck change only where the old tasks' features do not look (half of NSGP-RePRE, ICML 2025).

After each task, every trained layer of backbone and neck is asked for the second moment of its inputs on the task's
images. Its leading directions hold nearly all of what the layer is ever given; later updates of its weights lose their
part along them, so that the layer's old outputs stay. It is the update of the optimiser that is projected, not the
gradient: neither momentum, nor weight decay, nor AdamW's scaling can leak past. Proposals and the region head train
freely.

The second half, prototypes of region features, is ``prototypes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from incdet.data.views import TrainImage
from incdet.errors import ConfigError
from incdet.methods.base import Method, TaskContext
from incdet.randomness import derive_seed
from incdet.subspace import (
    Layer,
    as_matrix,
    basis_of,
    free_share,
    input_patches,
    layers_of,
    leading_directions,
    projected,
    watched,
)
from incdet.tensors import load_tensors, save_tensors

FILE = "layer_inputs.safetensors"
KIND = "layer_inputs"


class Nsgp(Method):
    """Projects the updates of backbone and neck into the null space of the old tasks' layer inputs."""

    DEFAULTS: ClassVar = {
        "ENERGY": 0.99,  # share of the inputs' energy that may not be touched. Ours
        "IMAGES": 200,  # of the task, drawn at random, that the inputs are taken from. Ours
        "PATCHES": 64,  # drawn from each image's, per layer. Together more than a layer has inputs. Ours
        "FREEZE_REST": True,  # biases and norms of backbone and neck, which have no null space, stay too. Ours
    }

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if not 0 < node.ENERGY <= 1:
            raise ConfigError(f"METHOD.NSGP.ENERGY: expected a share above 0 and at most 1, got {node.ENERGY}.")
        self._bases: dict[str, Tensor] = {}
        self._report: dict[str, Any] = {}

    def begin_task(self, context: TaskContext) -> None:
        directions, _ = self._earlier(context)
        device = context.student.classifier.weight.device
        self._bases = {name: basis_of(rows).to(device) for name, rows in directions.items()}
        trained = [self._bases[name] for name, _ in layers_of(context.student.backbone) if name in self._bases]
        if trained:
            self._report = {"free_share": round(free_share(trained), 4)}

    def around_update(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        return self._projected(parameters) if self._bases else nullcontext()

    @contextmanager
    @torch.no_grad()
    def _projected(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        prefix = "backbone."
        shared = {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}
        rest = [p for name, p in shared.items() if name.removesuffix(".weight") not in self._bases]
        before = [parameter.detach().clone() for parameter in rest]
        with projected(shared, self._bases):
            yield
        if self.cfg.FREEZE_REST:
            for parameter, old in zip(rest, before, strict=True):
                parameter.copy_(old)

    def end_task(self, context: TaskContext) -> None:
        generator = torch.Generator().manual_seed(derive_seed(context.cfg.SEED, "nsgp", context.task.index))
        images = context.view.images
        order = torch.randperm(len(images), generator=generator)[: self.cfg.IMAGES].tolist()
        moments = self._moments(context, [images[i] for i in order], generator)
        if not context.is_main:
            return
        earlier, seen = self._earlier(context)
        for name, rows in earlier.items():
            old = (rows.transpose(1, 2) @ rows).to(context.student.classifier.weight.device)
            # A layer that was frozen in this task has no new inputs; it may train again in a later one.
            moments[name] = (seen * old + len(order) * moments[name]) / (seen + len(order)) if name in moments else old
        kept = {name: leading_directions(moment, self.cfg.ENERGY) for name, moment in moments.items()}
        save_tensors(context.task_folder / FILE, KIND, kept, seen + len(order))

    def _moments(
        self, context: TaskContext, images: Sequence[TrainImage], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The uncentred second moment (g, d, d) of the inputs of each trained layer of backbone and neck."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}

        def add(name: str, layer: Layer, x: Tensor) -> None:
            patches = input_patches(layer, x.detach().float(), self.cfg.PATCHES * len(x), generator)
            sums[name] += patches.transpose(1, 2) @ patches
            counts[name] += patches.shape[1]

        for name, layer in layers_of(context.student.backbone):
            groups, _, width = as_matrix(layer, layer.weight).shape
            sums[name] = layer.weight.new_zeros(groups, width, width)
            counts[name] = layer.weight.new_zeros(())
        with watched(context.student.backbone, add):
            context.detect(context.student, images, "layer inputs")
        # The processes share the images; each takes part in every average, whether it saw an image or not.
        return {name: context.average(total) / context.average(counts[name]) for name, total in sums.items()}

    def _earlier(self, context: TaskContext) -> tuple[dict[str, Tensor], int]:
        """The scaled directions that the task before kept, and of how many images; none before the first."""
        if not context.task.old:
            return {}, 0
        path = context.run_folder / f"task_{context.task.index - 1}" / FILE
        return load_tensors(path, KIND, "It is written at that task's end: delete its result.json and run --resume.")

    def report(self) -> dict[str, Any]:
        return {"null_space": self._report} if self._report else {}
