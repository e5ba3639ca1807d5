"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator

import torch
from fvcore.common.config import CfgNode
from torch import nn

from incdet.errors import ConfigError

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(solver: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of one task: norms with their own decay, the backbone with its own learning rate.

    Each group remembers its ``lr_factor``; ``set_learning_rate`` multiplies by it.

    Raises:
        ConfigError: ``SOLVER.OPTIMIZER`` is not known.
    """
    groups = list(_parameter_groups(solver, model))
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    if solver.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR)
    raise ConfigError(f"SOLVER.OPTIMIZER: expected SGD or AdamW, got {solver.OPTIMIZER!r}.")


def _parameter_groups(solver: CfgNode, model: nn.Module) -> Iterator[dict]:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                decay = solver.WEIGHT_DECAY_NORM if isinstance(module, NORMS) else solver.WEIGHT_DECAY
                factor = solver.BACKBONE_MULTIPLIER if path.split(".")[0] == "backbone" else 1.0
                if name == "bias" and not isinstance(module, NORMS):
                    decay = decay if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
                    factor *= solver.BIAS_LR_FACTOR
                groups.setdefault((decay, factor), []).append(parameter)
    for (decay, factor), parameters in groups.items():
        yield {"params": parameters, "weight_decay": decay, "lr_factor": factor}


def learning_rate(solver: CfgNode, iteration: int) -> float:
    """The learning rate of an iteration (from 0): linear warm-up times steps or half a cosine, as detectron2's.

    A function of the iteration alone: there is no scheduler state to save.

    Raises:
        ConfigError: ``SOLVER.LR_SCHEDULER_NAME`` is not known.
    """
    warmup = 1.0
    if iteration < solver.WARMUP_ITERS:
        alpha = iteration / solver.WARMUP_ITERS
        warmup = solver.WARMUP_FACTOR * (1 - alpha) + alpha
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        decay = solver.GAMMA ** bisect_right(sorted(solver.STEPS), iteration)
    elif solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        decay = 0.5 * (1 + math.cos(math.pi * iteration / solver.MAX_ITER))
    else:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME: expected WarmupMultiStepLR or WarmupCosineLR, got {solver.LR_SCHEDULER_NAME!r}."
        )
    return solver.BASE_LR * warmup * decay


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
