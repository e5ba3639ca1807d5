"""The training loop of one task, to be read top to bottom.

Whatever is random in iteration i follows from (seed, task, i): see ``incdet.randomness``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from fvcore.common.config import CfgNode
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from incdet.data.loader import train_loader
from incdet.data.views import TaskView
from incdet.engine.checkpoint import TaskState
from incdet.engine.learner import Learner, Sealed, check_losses
from incdet.engine.logs import MetricsLog, Progress
from incdet.errors import ConfigError
from incdet.optim import build_optimizer, learning_rate, set_learning_rate
from incdet.randomness import derive_seed, seed_torch


@dataclass
class Trained:
    """What the loop did."""

    iterations: int
    seconds: float  # over all the processes' lives, when a task was resumed


def train_task(learner: Learner, view: TaskView, cfg: CfgNode, fabric: Fabric, folder: Path, log_path: Path) -> Trained:
    """Train the learner's student on a task; resume from ``folder/state.pt`` where it exists.

    Args:
        learner: its student is changed in place and ends with the averaged weights where an average is kept.
        view: the training data.
        cfg: of this task.
        fabric: launched.
        folder: the task's folder.
        log_path: ``metrics.jsonl`` of the run.
    """
    solver, task, student = cfg.SOLVER, view.task.index, learner.student
    student.train()
    state = _initial_state(learner, solver, fabric)
    start, seconds = state.restore(folder / "state.pt")
    wrapped, optimizer = fabric.setup(learner, state.optimizer)
    log = MetricsLog(log_path, task, start) if fabric.is_global_zero else None
    progress = Progress(f"task {task}", start, solver.MAX_ITER, fabric.is_global_zero)
    loader = train_loader(view, cfg, range(start, solver.MAX_ITER), fabric.global_rank, fabric.world_size)
    average = cast("Callable[[Tensor], Tensor]", partial(fabric.all_reduce, reduce_op="mean"))
    began = time.perf_counter() - seconds

    with closing(progress):  # an error message begins on a line of its own
        for iteration, batch in zip(range(start, solver.MAX_ITER), loader, strict=True):
            seed_torch(derive_seed(cfg.SEED, "step", task, iteration, fabric.global_rank))
            rate = learning_rate(solver, iteration)
            set_learning_rate(optimizer, rate)
            losses = wrapped(Sealed(batch.to(fabric.device)))
            total = sum(losses.values())
            check_losses(losses | learner.constraints, iteration)
            optimizer.zero_grad(set_to_none=True)
            with learner.around_backward(average, _loss_scale(fabric)):
                fabric.backward(total)
            _clip_gradients(solver.CLIP_GRADIENTS, wrapped, optimizer, fabric)
            with learner.around_update():
                optimizer.step()
            if state.average is not None:
                state.average.update_parameters(student)

            done = iteration + 1
            progress.advance(len(batch) * fabric.world_size)
            if done % cfg.LOG_PERIOD == 0 or done == solver.MAX_ITER:
                values = _values(losses)
                loss = sum(values.values())
                values |= _values(learner.constraints)
                throughput = progress.show(values, rate)
                if log is not None:
                    log.write(task, iteration, {"loss": loss, **values, "lr": rate, "img_per_s": throughput})
            due = solver.CHECKPOINT_PERIOD and done % solver.CHECKPOINT_PERIOD == 0 and done < solver.MAX_ITER
            if due and fabric.is_global_zero:
                state.save(folder / "state.pt", done, time.perf_counter() - began)

    if log is not None:
        log.close()
    if state.average is not None:
        student.load_state_dict(state.average.module.state_dict())
    return Trained(solver.MAX_ITER, time.perf_counter() - began)


def _initial_state(learner: Learner, solver: CfgNode, fabric: Fabric) -> TaskState:
    student = learner.student
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(solver.EMA_DECAY)) if solver.EMA_DECAY else None
    optimizer = build_optimizer(solver, student)
    return TaskState(student, optimizer, average, fabric.strategy.precision, learner.methods)


def _loss_scale(fabric: Fabric) -> float:
    """What the gradients are multiplied with until they are clipped or applied, so that 16 bits can hold them."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _clip_gradients(node: CfgNode, module: nn.Module, optimizer: torch.optim.Optimizer, fabric: Fabric) -> None:
    if not node.ENABLED:
        return
    if node.CLIP_TYPE == "full_model":
        fabric.clip_gradients(module, optimizer, max_norm=node.CLIP_VALUE, norm_type=node.NORM_TYPE)
    elif node.CLIP_TYPE == "value":
        fabric.clip_gradients(module, optimizer, clip_val=node.CLIP_VALUE)
    elif node.CLIP_TYPE == "norm":
        fabric.strategy.precision.unscale_gradients(optimizer)
        for parameter in module.parameters():
            torch.nn.utils.clip_grad_norm_(parameter, node.CLIP_VALUE, node.NORM_TYPE)
    else:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: expected full_model, norm or value, got {node.CLIP_TYPE!r}."
        )


def _values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}
