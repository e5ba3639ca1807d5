"""HAT: every task has its own units, and what makes them is not changed again (Serra et al., ICML 2018).

Each layer's outputs are multiplied by the task's mask ``sigmoid(s e)``, with an embedding e per unit that is learned
along with the weights. Within each epoch the scale s grows until the masks are nearly binary. A cost keeps a task from
claiming units that it does not need; weights between units that an earlier task uses stay.

It is the update that is masked, not the gradient, so that neither momentum nor weight decay can leak past. The task of
an image has to be known: there is one head per task, and each is read through its own task's masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from incdet.errors import ConfigError
from incdet.losses.hard_attention import annealed_scale, compensated, free_weights, mask_cost
from incdet.methods.base import Condition, Method, Step, TaskContext
from incdet.randomness import derive_seed
from incdet.tensors import load_tensors, save_tensors

FILE = "hat.safetensors"
KIND = "task_masks"
EMBEDDINGS = "task_embeddings"  # of the student while it learns a task, so that the optimiser and state.pt have them


class Hat(Method):
    """A mask per task on the units of every layer, and updates that leave alone what earlier tasks' masks use."""

    DEFAULTS: ClassVar = {
        "SMAX": 400.0,  # the largest scale, and the test's (release)
        "WEIGHT": 0.75,  # of the masks' cost (paper)
        "CLAMP": 6.0,  # embeddings stay between plus and minus this (release)
    }
    works_on = ("classification",)
    changes_first_task = True
    combines = False  # another task's images would need that task's masks

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._embeddings: Mapping[str, nn.Parameter] = {}  # by layer
        self._used: dict[str, Tensor] = {}  # (d,) the largest mask of any earlier task
        self._free: list[tuple[Tensor, Tensor]] = []  # the share of each one's update that is kept
        self._iteration, self._epoch = 0, 1  # how many are done, and how many an epoch has
        self._masking = ExitStack()
        self._report: dict[str, Any] = {}

    def check(self, cfg: CfgNode) -> None:
        if not cfg.MODEL.CLASSIFIER.MULTI_HEAD:
            raise ConfigError(
                "MODEL.CLASSIFIER.MULTI_HEAD: hat reads the classes of each task through the task's own masks, and "
                "needs one head per task, got False. Set it True, or take another method."
            )
        if cfg.MODEL.BACKBONE.NAME != "mlp":
            raise ConfigError(
                "MODEL.BACKBONE.NAME: hat masks what every layer makes, which is defined here for a chain of layers, "
                f"expected mlp, got {cfg.MODEL.BACKBONE.NAME}. Take it, or another method."
            )

    def begin_task(self, context: TaskContext) -> None:
        student, device = context.student, context.student.classifier.weight.device
        generator = torch.Generator().manual_seed(derive_seed(context.cfg.SEED, "hat", context.task.index))
        earlier, drawn = self._earlier(context), nn.ParameterDict()
        for name, layer in layers_of(student).items():
            drawn[name] = nn.Parameter(torch.randn(layer.out_features, generator=generator).to(device))
            masks = earlier.get(name, torch.zeros(1, layer.out_features))
            self._used[name] = masks.amax(dim=0).to(device)
        setattr(student, EMBEDDINGS, drawn)
        self._embeddings = dict(drawn.items())
        self._free = free_updates(student, self._used, context.task.num_old)
        self._iteration, self._epoch = 0, math.ceil(len(context.view) / context.cfg.SOLVER.IMS_PER_BATCH)
        self._masking.enter_context(masked(student, lambda name: self._masks()[name]))

    def losses(self, step: Step) -> dict[str, Tensor]:
        if not self._embeddings:
            return {}
        return {"loss_hat": self.cfg.WEIGHT * mask_cost(self._masks(), self._used)}

    def around_update(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        return self._held() if self._embeddings else nullcontext()

    @contextmanager
    @torch.no_grad()
    def _held(self) -> Iterator[None]:
        for embedding in self._embeddings.values():
            if embedding.grad is not None:
                embedding.grad.copy_(compensated(embedding.grad, embedding, self._scale(), self.cfg.SMAX))
        before = [parameter.detach().clone() for parameter, _ in self._free]
        yield
        for (parameter, share), old in zip(self._free, before, strict=True):
            parameter.copy_(old + share * (parameter - old))
        for embedding in self._embeddings.values():
            embedding.clamp_(-self.cfg.CLAMP, self.cfg.CLAMP)
        self._iteration += 1

    def _scale(self) -> float:
        return annealed_scale(self._iteration % self._epoch, self._epoch, self.cfg.SMAX)

    def _masks(self, scale: float | None = None) -> dict[str, Tensor]:
        """The task's, at a scale; at that of the iteration without one."""
        scale = self._scale() if scale is None else scale
        return {name: (scale * embedding).sigmoid() for name, embedding in self._embeddings.items()}

    def refine(self, context: TaskContext) -> None:
        """Take the masks off the student and keep them beside its model, before that is written."""
        self._masking.close()
        delattr(context.student, EMBEDDINGS)
        masks = {name: mask.detach().cpu() for name, mask in self._masks(self.cfg.SMAX).items()}
        self._embeddings = {}
        used = torch.cat([torch.maximum(mask, self._used[name].cpu()) for name, mask in masks.items()])
        claimed = torch.cat([*masks.values()])
        self._report = {"task_units": round(claimed.mean().item(), 4), "used_units": round(used.mean().item(), 4)}
        if context.is_main:
            earlier = self._earlier(context)
            rows = {n: torch.cat([earlier[n], m[None]]) if n in earlier else m[None] for n, m in masks.items()}
            save_tensors(context.task_folder / FILE, KIND, rows, None)

    def conditions(self, folder: Path) -> Sequence[Condition]:
        masks = load_masks(folder)

        def condition(task: int) -> Condition:
            return lambda detector: masked(detector, lambda name: masks[name][task])

        return [condition(task) for task in range(len(next(iter(masks.values()))))]

    def _earlier(self, context: TaskContext) -> dict[str, Tensor]:
        """The masks (tasks, d) of the tasks before, by layer; none before the first."""
        if not context.task.old:
            return {}
        return load_masks(context.run_folder / f"task_{context.task.index - 1}")

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self._iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._iteration = state["iteration"]

    def report(self) -> dict[str, Any]:
        return {"hat": self._report} if self._report else {}


def load_masks(folder: Path) -> dict[str, Tensor]:
    """Those of all tasks so far (tasks, d), by layer, on the CPU."""
    remedy = "It is written beside the task's model: delete the model, and the result.json, and run --resume."
    return load_tensors(folder / FILE, KIND, remedy)[0]


def layers_of(detector: Any) -> dict[str, nn.Linear]:
    """The layers of the chain, in order, by the name of the stage that they make with their activation."""
    modules = detector.backbone.body.named_modules()
    return {name.partition(".")[0]: module for name, module in modules if isinstance(module, nn.Linear)}


@contextmanager
def masked(detector: Any, mask_of: Callable[[str], Tensor]) -> Iterator[None]:
    """The detector with every layer's outputs (N, d) times a mask (d,)."""
    with ExitStack() as hooks:
        for name in layers_of(detector):
            hook = detector.backbone.body[name].register_forward_hook(
                lambda _, __, output, name=name: output * mask_of(name).to(output.device)
            )
            hooks.callback(hook.remove)
        yield


def free_updates(detector: Any, used: Mapping[str, Tensor], num_old: int) -> list[tuple[Tensor, Tensor]]:
    """Each parameter with the share of its update that no earlier task minds; the old heads' rows stay."""
    free, used_in = [], None
    for name, layer in layers_of(detector).items():
        free += [(layer.weight, free_weights(used[name], used_in)), (layer.bias, 1 - used[name])]
        used_in = used[name]
    rows = (torch.arange(detector.num_classes) >= num_old).to(detector.classifier.weight)
    for parameter in detector.classifier.parameters():  # a cosine head's scale belongs to the old heads too
        free.append((parameter, rows.view(-1, *[1] * (parameter.ndim - 1)) if parameter.ndim else rows[0]))
    return free
