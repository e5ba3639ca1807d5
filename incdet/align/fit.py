"""The contrastive fit of ELI's energy network, and the released settings by name.

From inputs of the current task alone, the network learns to score latents of the previous model above what the walk
makes of the current model's: ``loss = mean(score(walk(new)) - score(old))``, with no gradient through the walk. The
moving average of its weights is what aligns (Joseph et al., CVPR 2022; details from the released code). The loss has no
lower bound: the number of iterations is the only brake.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import trange

from incdet.align.base import check_pairs
from incdet.align.energy import EnergyAligner
from incdet.errors import ConfigError, DivergenceError
from incdet.randomness import seeded


@dataclass(frozen=True)
class EnergySettings:
    """How an energy network is built, fitted and walked; the defaults are the released detection code's.

    Raises:
        ConfigError: a value outside its range.
    """

    hidden: tuple[int, ...] = (64,)  # widths of the hidden layers; with none, all rows move alike
    iterations: int = 1000
    batch_size: int = 128  # pairs
    ema: float = 0.89  # share of the moving average that one iteration keeps
    steps: int = 30
    step_size: float = 0.1
    learning_rate: float = 1e-4  # RMSprop, everything else as torch has it
    familiar_quantile: float = 0.95  # ours: share of the current model's latents that is not familiar

    def __post_init__(self) -> None:
        positive = (*self.hidden, self.iterations, self.batch_size, self.learning_rate)
        shares = self.ema < 1 and 0 <= self.familiar_quantile <= 1
        if min(positive) <= 0 or min(self.steps, self.step_size, self.ema) < 0 or not shares:
            raise ConfigError(
                "Energy settings: hidden, iterations, batch_size and learning_rate are to be positive, steps and "
                "step_size not negative, ema in [0, 1) and familiar_quantile in [0, 1]; got "
                f"{', '.join(f'{name}={value}' for name, value in asdict(self).items())}."
            )


# Read in the released code (github.com/JosephKJ/ELI at 93ddce7). The notebooks watched the old classes' test images, so
# their iterations and averages may be tuned on these.
PRESETS = {
    "toy_32": EnergySettings(iterations=17100, ema=0.99),  # ELI.ipynb: two tasks of MNIST, D = 32
    "toy_512": EnergySettings(iterations=8500),  # ELI_512.ipynb: the same with D = 512
    "classification": EnergySettings(hidden=(64, 64), iterations=1500),  # classification/utils/ebm_aligner.py, main.py
    "classification_linear": EnergySettings(hidden=(), iterations=1500),  # its scripts: AANets, ImageNet, 10, 25 tasks
    "detection": EnergySettings(),  # detection/detectron2/config/defaults.py; VOC 15+5 leaves them
    "detection_10+10": EnergySettings(step_size=0.01),  # configs/PascalVOC-Detection/iOD/align_10_p_10.yaml
    "detection_19+1": EnergySettings(hidden=(), step_size=1e-4),  # align_19_p_1.yaml; such steps move next to nothing
}


# Called after each iteration with how many are done and the aligner so far, which it must not change.
Watch = Callable[[int, EnergyAligner], None]


def fit_energy(
    old: Tensor,
    new: Tensor,
    settings: EnergySettings,
    seed: int = 0,
    show_progress: bool = True,
    watch: Watch | None = None,
) -> EnergyAligner:
    """ELI's aligner from paired latents; the seed decides everything that is drawn.

    Args:
        old: latents of the previous model, (R, D).
        new: of the current model, for the same inputs, (R, D).
        settings: one of ``PRESETS``, or others.
        seed: of the first weights and of the batches, which are drawn with replacement (ours).
        show_progress: whether a progress bar is shown.
        watch: for those who want to see how the fit goes.

    Raises:
        MethodError: the latents are not pairs.
        DivergenceError: the network is no longer finite.
    """
    check_pairs(old, new)
    old, new = old.detach().float(), new.detach().float()
    with torch.inference_mode(False), torch.enable_grad():
        aligner = _contrast(old, new, settings, seed, show_progress, watch)
        aligner.threshold = torch.quantile(aligner.network(new), settings.familiar_quantile)
    if not all(parameter.isfinite().all() for parameter in aligner.parameters()):
        raise DivergenceError(
            f"The energy network is not finite after {settings.iterations} iterations. Lower its learning_rate "
            f"({settings.learning_rate}) or step_size ({settings.step_size})."
        )
    aligner.provenance = {"settings": asdict(settings), "seed": seed, "latents": len(old)}
    return aligner


def _contrast(
    old: Tensor, new: Tensor, settings: EnergySettings, seed: int, show_progress: bool, watch: Watch | None
) -> EnergyAligner:
    """The training loop; what it returns aligns with the moving average of the weights."""
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        aligner = EnergyAligner(old.shape[1], settings.hidden, settings.steps, settings.step_size).to(old.device)
    average, network = aligner.network, copy.deepcopy(aligner.network).requires_grad_()
    optimizer = torch.optim.RMSprop(network.parameters(), lr=settings.learning_rate)
    for iteration in trange(settings.iterations, desc="energy network", disable=not show_progress, leave=False):
        rows = torch.randint(len(old), (settings.batch_size,), generator=generator).to(old.device)
        reached = network.walk(new[rows], settings.steps, settings.step_size)
        loss = (network(reached) - network(old[rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for mean, value in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - settings.ema)
        if watch:
            watch(iteration + 1, aligner)
    return aligner
