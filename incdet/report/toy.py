"""Pictures and table of ELI's toy experiment: one row or panel per width of the latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from incdet.report.plots import GRID, INK, MARKERS, OKABE_ITO, STYLE, Format, plain_axes, render

NAMES = {
    "before": "before task 2",
    "drifted": "after task 2",
    "mean_shift": "mean shift",
    "energy": "energy (ELI)",
    "ridge": "ridge",
    "energy_paired": "energy, paired",
}
COLOURS = dict(zip(NAMES, (INK, GRID, OKABE_ITO[4], OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[2]), strict=True))
# Levels often coincide: of two that do, the later one's gaps show the earlier one.
DASHES: dict[str, Any] = {
    "before": "-",
    "energy_paired": (0, (7, 4)),
    "ridge": (0, (2, 9)),
    "mean_shift": (0, (4, 2)),
    "drifted": (0, (1, 1)),
}
POINTS = 600  # of a map, at most: more hide each other


def alignment_curves(
    curves: Mapping[int, Sequence[tuple[int, float]]], levels: Mapping[int, Mapping[str, float]], fmt: Format = "png"
) -> bytes:
    """Accuracy on old digits over the iterations of the energy's fit; what does not iterate is a level.

    Args:
        curves: by width, (iterations, accuracy).
        levels: by width, accuracy by name.
        fmt: of the picture.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (width, curve) in zip(panels, curves.items(), strict=True):
            for name, dashes in DASHES.items():
                axes.axhline(100 * levels[width][name], color=COLOURS[name], ls=dashes, lw=1.8, label=NAMES[name])
            iterations, accuracies = zip(*curve, strict=True)
            percent = [100 * accuracy for accuracy in accuracies]
            axes.plot(iterations, percent, color=COLOURS["energy"], marker="o", ms=3.5, label=NAMES["energy"])
            axes.set_title(f"D = {width}", fontsize=10, loc="left")
            axes.set_xlabel("iterations of the energy's fit")
            plain_axes(axes, grid="y")
        panels[0].set_ylabel("accuracy on digits 0–4, %")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, handlelength=3.5
        )
        return render(figure, fmt)


def latent_maps(latents: Mapping[int, Mapping[str, Tensor]], labels: Tensor, fmt: Format = "png") -> bytes:
    """Old test images' latents in the plane in which those before task 2 spread most (PCA); a colour is a digit."""
    stages = list(NAMES)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.0 * len(stages), 0.5 + 2.1 * len(latents)), layout="constrained")
        grid = figure.subplots(len(latents), len(stages), squeeze=False)
        for row, (width, stage_latents) in zip(grid, latents.items(), strict=True):
            before = stage_latents["before"].double()
            centre = before.mean(dim=0)
            plane = torch.linalg.svd(before - centre, full_matrices=False).Vh[:2].T
            places = {name: (stage_latents[name].double() - centre) @ plane for name in stages}
            # The widest stage would otherwise squeeze all others; what lies outside is seen to leave the frame.
            limit = 1.15 * torch.cat([places["before"], places["ridge"]]).abs().amax(dim=0)
            for axes, name in zip(row, stages, strict=True):
                _scatter(axes, places[name][:POINTS], labels[:POINTS])
                axes.set_xlim(-limit[0].item(), limit[0].item())
                axes.set_ylim(-limit[1].item(), limit[1].item())
            row[0].set_ylabel(f"D = {width}")
        for axes, name in zip(grid[0], stages, strict=True):
            axes.set_title(NAMES[name], fontsize=10)
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, title="digit", markerscale=2)
        return render(figure, fmt)


def _scatter(axes: Axes, places: Tensor, labels: Tensor) -> None:
    for digit in range(5):
        x, y = places[labels == digit].T.tolist()
        axes.scatter(x, y, s=9, marker=MARKERS[digit], c=OKABE_ITO[digit], alpha=0.6, lw=0, label=str(digit))
    axes.set_xticks([])
    axes.set_yticks([])


def displacements(latents: Mapping[int, Mapping[str, Tensor]], fmt: Format = "png") -> bytes:
    """A dot is a dimension: how far old test images drifted in it on average, and how far they are once aligned."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(latents), 4.2), layout="constrained")
        panels = figure.subplots(1, len(latents), squeeze=False)[0]
        for axes, (width, stages) in zip(panels, latents.items(), strict=True):
            distances = {
                name: (rows - stages["before"]).abs().mean(dim=0) for name, rows in stages.items() if name != "before"
            }
            drift = distances["drifted"]
            moved = drift > 1e-3 * drift.max()  # pixels that are always blank leave some dimensions where they were
            ends = (drift[moved].min().item(), drift.max().item())
            axes.plot(ends, ends, color=COLOURS["drifted"], lw=1.4, label="not aligned")
            for marker, name in zip(MARKERS, ("mean_shift", "energy", "ridge", "energy_paired"), strict=False):
                left = distances[name][moved].tolist()
                axes.scatter(
                    drift[moved].tolist(),
                    left,
                    s=10,
                    marker=marker,
                    c=COLOURS[name],
                    alpha=0.6,
                    lw=0,
                    label=NAMES[name],
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(f"D = {width}", fontsize=10, loc="left")
            axes.set_xlabel("drift of a dimension")
            plain_axes(axes, grid="y")
        panels[0].set_ylabel("distance left after aligning")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=5, frameon=False, markerscale=2)
        return render(figure, fmt)


def toy_table(accuracies: Mapping[int, Mapping[str, float]]) -> str:
    """Accuracy on old digits by stage and width, in Markdown."""
    lines = [
        f"| digits 0–4, accuracy % | {' | '.join(f'D = {width}' for width in accuracies)} |",
        f"| --- |{' ---: |' * len(accuracies)}",
    ]
    for name, title in NAMES.items():
        cells = " | ".join(f"{100 * row[name]:.2f}" for row in accuracies.values())
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)
