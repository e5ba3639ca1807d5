"""HAT: every task has its own units, and what makes them is not changed again (Serra et al., ICML 2018).

Each layer's outputs are multiplied by the task's mask ``sigmoid(s e)``, with an embedding e per unit that is learned
along with the weights. Within each epoch the scale s grows until the masks are nearly binary. A cost keeps a task from
claiming units that it does not need; weights between units that an earlier task uses stay.

A unit is a channel of a layer's output. Layers whose outputs a block adds up make the block's units together, with one
mask on the sum (``backends.backbone.Wire`` says which layer lies between which units). Frozen stages are every task's
and have no masks. A norm that goes on learning would change old features, so that from the second task on all norms
are fixed.

It is the update that is masked, not the gradient, so that neither momentum nor weight decay can leak past. The task of
an image has to be known: there is one head per task, and each is read through its own task's masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from incdet.config.node import CfgNode, config_for_task
from incdet.errors import ConfigError
from incdet.losses.hard_attention import annealed_scale, compensated, free_weights, mask_cost
from incdet.methods.base import Condition, Method, Step, TaskContext
from incdet.randomness import derive_seed
from incdet.tensors import load_tensors, save_tensors

FILE = "hat.safetensors"
KIND = "task_masks"
EMBEDDINGS = "task_embeddings"  # of the student while it learns a task, so that the optimiser and state.pt have them
FIXED_NORMS = ("FrozenBN", "none")


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
        self._embeddings: dict[str, nn.Parameter] = {}  # (d,) by the name of the units
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
        later = config_for_task(cfg, 2).MODEL.BACKBONE
        if later.NAME != "mlp" and later.NORM not in FIXED_NORMS and not later.FREEZE_NORM:
            raise ConfigError(
                "MODEL.BACKBONE.NORM: hat keeps what earlier tasks' units compute, which a norm that learns would "
                f"change; expected {' or '.join(FIXED_NORMS)} from the second task on, got {later.NORM}. Take one of "
                "them, or keep the first task's norms: NEXT_TASKS.MODEL.BACKBONE.FREEZE_NORM true."
            )

    def begin_task(self, context: TaskContext) -> None:
        student, device = context.student, context.student.classifier.weight.device
        generator = torch.Generator().manual_seed(derive_seed(context.cfg.SEED, "hat", context.task.index))
        self._embeddings, self._used, earlier = {}, {}, self._earlier(context)
        for units, count in {wire.makes: len(layer.weight) for wire, layer in trained_wires(student)}.items():
            self._embeddings[units] = nn.Parameter(torch.randn(count, generator=generator).to(device))
            masks = earlier.get(units, torch.ones(context.task.index - 1, count))  # once frozen, and everyone's
            self._used[units] = torch.cat([torch.zeros(1, count), masks]).amax(dim=0).to(device)
        if not self._embeddings:
            raise ConfigError(
                "MODEL.BACKBONE.FREEZE_AT: hat masks the stages that train, expected a value that leaves one, got "
                f"{context.cfg.MODEL.BACKBONE.FREEZE_AT}. Take a smaller one."
            )
        drawn = {units.replace(".", "/"): embedding for units, embedding in self._embeddings.items()}
        setattr(student, EMBEDDINGS, nn.ParameterDict(drawn))
        self._free = free_updates(student, self._used, context.task.num_old)
        self._iteration, self._epoch = 0, math.ceil(len(context.view) / context.cfg.SOLVER.IMS_PER_BATCH)
        self._masking.enter_context(masked(student, self._embeddings, lambda units: self._mask(units, self._scale())))

    def losses(self, step: Step) -> dict[str, Tensor]:
        if not self._embeddings:
            return {}
        masks = {units: self._mask(units, self._scale()) for units in self._embeddings}
        return {"loss_hat": self.cfg.WEIGHT * mask_cost(masks, self._used)}

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

    def _mask(self, units: str, scale: float) -> Tensor:
        return (scale * self._embeddings[units]).sigmoid()

    def refine(self, context: TaskContext) -> None:
        """Take the masks off the student and keep them beside its model, before that is written."""
        self._masking.close()
        delattr(context.student, EMBEDDINGS)
        masks = {units: self._mask(units, self.cfg.SMAX).detach().cpu() for units in self._embeddings}
        self._embeddings = {}
        used = torch.cat([torch.maximum(mask, self._used[units].cpu()) for units, mask in masks.items()])
        claimed = torch.cat([*masks.values()])
        self._report = {"task_units": round(claimed.mean().item(), 4), "used_units": round(used.mean().item(), 4)}
        if context.is_main:
            save_tensors(context.task_folder / FILE, KIND, self._extended(context, masks), None)

    def _extended(self, context: TaskContext, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tasks' masks so far (tasks, d); where a task found units frozen, it uses all of them."""
        rows, earlier = {}, self._earlier(context)
        for units in {**earlier, **masks}:
            width = len(masks[units]) if units in masks else earlier[units].shape[1]
            before = earlier.get(units, torch.ones(context.task.index - 1, width))
            rows[units] = torch.cat([before, masks.get(units, torch.ones(width))[None]])
        return rows

    def conditions(self, folder: Path) -> Sequence[Condition]:
        masks = load_masks(folder)

        def condition(task: int) -> Condition:
            return lambda detector: masked(detector, masks, lambda units: masks[units][task])

        return [condition(task) for task in range(len(next(iter(masks.values()))))]

    def _earlier(self, context: TaskContext) -> dict[str, Tensor]:
        """The masks (tasks, d) of the tasks before; none before the first."""
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
    """Those of all tasks so far (tasks, d), by the name of the units, on the CPU."""
    remedy = "It is written beside the task's model: delete the model, and the result.json, and run --resume."
    return load_tensors(folder / FILE, KIND, remedy)[0]


def trained_wires(detector: Any) -> Iterator[tuple[Any, nn.Linear | nn.Conv2d]]:
    """The layers that train, in the order of the computation, each with its ``Wire``."""
    body = detector.backbone.body
    for wire in body.wires():
        layer = body.get_submodule(wire.layer)
        if layer.weight.requires_grad:
            yield wire, layer


@contextmanager
def masked(detector: Any, units: Iterable[str], mask_of: Callable[[str], Tensor]) -> Iterator[None]:
    """The detector with the outputs (N, d, ...) of the modules that are named times a mask (d,) each."""

    def multiplied(name: str, output: Tensor) -> Tensor:
        return output * mask_of(name).view(-1, *[1] * (output.ndim - 2)).to(output)

    with ExitStack() as hooks:
        for name in units:
            module = detector.backbone.body.get_submodule(name)
            hook = module.register_forward_hook(lambda _, __, output, name=name: multiplied(name, output))
            hooks.callback(hook.remove)
        yield


def free_updates(detector: Any, used: Mapping[str, Tensor], num_old: int) -> list[tuple[Tensor, Tensor]]:
    """Each parameter with the share of its update that no earlier task minds; the old heads' rows stay."""
    free = []
    for wire, layer in trained_wires(detector):
        free.append((layer.weight, free_weights(layer.weight.shape, used[wire.makes], used.get(wire.reads))))
        if layer.bias is not None:
            free.append((layer.bias, 1 - used[wire.makes]))
    rows = (torch.arange(detector.num_classes) >= num_old).to(detector.classifier.weight)
    for parameter in detector.classifier.parameters():  # a cosine head's scale belongs to the old heads too
        free.append((parameter, rows.view(-1, *[1] * (parameter.ndim - 1)) if parameter.ndim else rows[0]))
    return free
