"""``incdet eli-toy``: ELI's experiment with two tasks of digits, every aligner beside it.

A linear map makes latents (D,) of an image; each task reads them with a head of its own. Learning the digits 5 to 9
moves the latents of 0 to 4, and head 1 no longer reads them. Aligners are fitted from the images of 5 to 9 alone.

What is peculiar in the released notebooks (github.com/JosephKJ/ELI at 93ddce7, ELI.ipynb and ELI_512.ipynb) is done
here too, and each peculiarity is a switch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from incdet.align.base import Aligner
from incdet.align.baselines import fit_mean_shift, fit_ridge
from incdet.align.energy import EnergyAligner
from incdet.align.fit import PRESETS, EnergySettings, Watch, fit_energy
from incdet.align.paired import fit_paired_energy
from incdet.data.digits import Digits, bundled_digits, mnist_digits
from incdet.errors import ConfigError
from incdet.files import write_atomic, write_json
from incdet.randomness import seeded
from incdet.report.toy import alignment_curves, displacements, latent_maps, toy_table

EPILOG = """examples:
  incdet eli-toy --out output/eli_toy
  incdet eli-toy --mnist FOLDER --out output/eli_toy_mnist

The bundled digits are scikit-learn's. Nothing is downloaded.
"""
BATCH_SIZE = 128
SMALL_EPOCHS = 100  # of the bundled digits, of which there are few (ours)
HEADS = ("as_released", "drifted", "saved")


@dataclass(frozen=True)
class ToySettings:
    """The experiment; the defaults are the released notebooks'."""

    width: int = 32  # D
    epochs: int = 10  # of each task
    train_head_2: bool = False  # it stays as it was drawn, and the latents adapt to it
    carry_momentum: bool = True  # one optimizer for both tasks: head 1, without gradients, rolls on for a while
    head: str = "as_released"  # head 1 that reads: after task 2 for the figures, after task 1 for the curve
    average_batches: bool = True  # accuracy is the mean over test batches, of which the last is smaller
    iterations: int | None = None  # of the energy's fit, in the place of the notebook's
    paired_iterations: int = 1500  # of energy_paired's (ours)
    points: int = 18  # of the curve
    seed: int = 120

    @property
    def energy(self) -> EnergySettings:
        preset = PRESETS["toy_512" if self.width >= 512 else "toy_32"]
        return replace(preset, iterations=self.iterations or preset.iterations)


class ToyNet(nn.Module):
    """Latents without an activation, and two heads that read them through one."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(pixels, width)
        self.heads = nn.ModuleList(nn.Linear(width, 5) for _ in range(2))

    def forward(self, images: Tensor, head: int) -> Tensor:
        return self.heads[head](relu(self.backbone(images)))


@dataclass
class ToyResult:
    """What came of one width; latents are those of the old test images, (N, D)."""

    settings: ToySettings
    accuracies: dict[str, float]  # before, drifted, then each aligner; share of the old test images
    new_accuracy: float
    curve: list[tuple[int, float]]  # iterations of the energy's fit, accuracy
    latents: dict[str, Tensor]
    labels: Tensor


def run_toy(digits: Digits, settings: ToySettings, show_progress: bool = True) -> ToyResult:
    """Learn both tasks, fit every aligner, and read the old test images with each."""
    before, after = _learn_both(digits, settings)
    images, labels = digits.task(0).test_images, digits.task(0).test_labels
    second = digits.task(1)
    with torch.no_grad():
        old, new = before.backbone(second.train_images), after.backbone(second.train_images)
        latents = {"before": before.backbone(images), "drifted": after.backbone(images)}
        new_logits = after(second.test_images, 1)
    saved, drifted = before.heads[0], after.heads[0]
    reading = saved if settings.head == "saved" else drifted
    watching = drifted if settings.head == "drifted" else saved

    @torch.no_grad()
    def score(features: Tensor, head: nn.Module) -> float:
        return accuracy(head(relu(features)), labels, settings.average_batches)

    curve = [(0, score(latents["drifted"], watching))]
    every = max(1, settings.energy.iterations // settings.points)

    def watch(iteration: int, aligner: EnergyAligner) -> None:
        if iteration % every == 0:
            curve.append((iteration, score(aligner(latents["drifted"]), watching)))

    for name, aligner in _fit_aligners(old, new, settings, show_progress, watch).items():
        latents[name] = aligner(latents["drifted"])
    accuracies = {name: score(rows, saved if name == "before" else reading) for name, rows in latents.items()}
    new_accuracy = accuracy(new_logits, second.test_labels, settings.average_batches)
    return ToyResult(settings, accuracies, new_accuracy, curve, latents, labels)


def _fit_aligners(
    old: Tensor, new: Tensor, settings: ToySettings, show_progress: bool, watch: Watch
) -> dict[str, Aligner]:
    seed, iterations = settings.seed, settings.paired_iterations
    return {
        "mean_shift": fit_mean_shift(old, new),
        "ridge": fit_ridge(old, new),
        "energy": fit_energy(old, new, settings.energy, seed, show_progress, watch),
        "energy_paired": fit_paired_energy(old, new, iterations=iterations, seed=seed, show_progress=show_progress),
    }


def _learn_both(digits: Digits, settings: ToySettings) -> tuple[ToyNet, ToyNet]:
    """The network after task 1 and after task 2."""
    with seeded(settings.seed):
        net = ToyNet(digits.train_images.shape[1], settings.width)
        frozen = "" if settings.train_head_2 else "heads.1."
        trained = [p for name, p in net.named_parameters() if not (frozen and name.startswith(frozen))]
        optimizer = _sgd(trained)
        _learn(net, 0, digits.task(0), optimizer, settings.epochs)
        before = deepcopy(net)
        _learn(net, 1, digits.task(1), optimizer if settings.carry_momentum else _sgd(trained), settings.epochs)
    return before, net


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def _learn(net: ToyNet, head: int, task: Digits, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    for _ in range(epochs):
        order = torch.randperm(len(task.train_images))
        for rows in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            loss = cross_entropy(net(task.train_images[rows], head), task.train_labels[rows])
            optimizer.zero_grad(set_to_none=False)  # as torch did then: with a gradient of zero, momentum still moves
            loss.backward()
            optimizer.step()


def accuracy(logits: Tensor, labels: Tensor, average_batches: bool) -> float:
    """The share of rows that are right, or the mean of the shares of batches."""
    right = (logits.argmax(dim=1) == labels).double()
    parts = right.split(BATCH_SIZE) if average_batches else [right]
    return torch.stack([part.mean() for part in parts]).mean().item()


def write_toy(results: Sequence[ToyResult], digits: Digits, folder: Path) -> None:
    """The three pictures and ``eli_toy.json``."""
    curves = {result.settings.width: result.curve for result in results}
    levels = {result.settings.width: result.accuracies for result in results}
    latents = {result.settings.width: result.latents for result in results}
    write_atomic(folder / "accuracy.png", alignment_curves(curves, levels))
    write_atomic(folder / "latents.png", latent_maps(latents, results[0].labels))
    write_atomic(folder / "displacement.png", displacements(latents))
    widths = [
        {"settings": asdict(r.settings), "old": r.accuracies, "new": r.new_accuracy, "curve": r.curve} for r in results
    ]
    described: dict[str, Any] = {"schema": 1, "digits": digits.name, "widths": widths}
    write_json(folder / "eli_toy.json", described)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("output/eli_toy"), help="folder (default: %(default)s)")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="of MNIST's four files, in place of small digits")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 512], metavar="D", help="default: 32 512")
    parser.add_argument("--epochs", type=int, help="of each task (default: 10; 100 for the small digits)")
    parser.add_argument("--iterations", type=int, metavar="N", help="of the energy's fit (default: the notebooks')")
    parser.add_argument(
        "--paired-iterations",
        type=int,
        default=ToySettings.paired_iterations,
        metavar="N",
        help="of energy_paired's (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=ToySettings.seed, help="default: %(default)s")
    quirks = parser.add_argument_group("what the notebooks do otherwise")
    quirks.add_argument("--train-head-2", action="store_true", help="do not leave head 2 as it was drawn")
    quirks.add_argument("--fresh-momentum", action="store_true", help="a new optimizer for task 2")
    quirks.add_argument(
        "--head", choices=HEADS, default="as_released", help="head 1 that reads (default: drifted, in the curve saved)"
    )
    quirks.add_argument("--per-image", action="store_true", help="accuracy over images, not averaged over batches")


def run(arguments: argparse.Namespace) -> None:
    if min(*arguments.widths, arguments.epochs or 1, arguments.iterations or 1, arguments.paired_iterations) < 1:
        raise ConfigError("eli-toy: --widths, --epochs and all iterations are to be positive.")
    digits = mnist_digits(arguments.mnist) if arguments.mnist else bundled_digits()
    epochs = arguments.epochs or (ToySettings.epochs if arguments.mnist else SMALL_EPOCHS)
    results = [
        run_toy(
            digits,
            ToySettings(
                width=width,
                epochs=epochs,
                train_head_2=arguments.train_head_2,
                carry_momentum=not arguments.fresh_momentum,
                head=arguments.head,
                average_batches=not arguments.per_image,
                iterations=arguments.iterations,
                paired_iterations=arguments.paired_iterations,
                seed=arguments.seed,
            ),
        )
        for width in arguments.widths
    ]
    write_toy(results, digits, arguments.out)
    print(toy_table({result.settings.width: result.accuracies for result in results}))
    print(f"Pictures and figures: {arguments.out}")
