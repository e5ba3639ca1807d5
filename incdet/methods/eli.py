"""ELI: region features are walked back to where the previous detector had them (Joseph et al., CVPR 2022).

Learning a task moves the features of all regions, those of old classes too, and the old classes' rows of the predictor
no longer meet them where they were taught. After the task, an energy network learns from the task's own images, seen by
the previous and by the current detector, which features the previous one makes; at prediction, features climb its score
before the predictor reads them. Training is not touched, so it combines with everything.

The release takes from the ground truth which regions are old. Here the gate decides from the detector alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from fvcore.common.config import CfgNode

from incdet.align.base import Aligner, LatentPairs
from incdet.align.baselines import RIDGE_STRENGTH, fit_mean_shift, fit_ridge
from incdet.align.files import load_chain, save_chain
from incdet.align.fit import PRESETS, EnergySettings, fit_energy
from incdet.align.gates import AlignerChain, HeadwiseChain, Link, find_gate
from incdet.align.paired import ITERATIONS, fit_paired_energy
from incdet.errors import ConfigError
from incdet.methods.base import Method, RegionReading, TaskContext
from incdet.randomness import derive_seed

FILE = "aligner.safetensors"
ALIGNERS = ("energy", "energy_paired", "mean_shift", "ridge")
HEAD = "head"  # in the gate's place: every head reads the features as its own task left them


class Eli(Method):
    """Aligns region features before the predictor: by a learned energy, or by a baseline that ELI has to beat."""

    DEFAULTS: ClassVar = {
        "ALIGNER": "energy",  # energy (ELI), energy_paired, mean_shift or ridge (ours)
        "PRESET": "detection",  # of the energy's settings: incdet/align/fit.py
        "ITERATIONS": None,  # of either energy's fit, in the preset's place; so the next two, of the first one's walk
        "STEPS": None,
        "STEP_SIZE": None,
        "RIDGE_STRENGTH": RIDGE_STRENGTH,  # also of the regression that energy_paired starts from
        # Or not_new, all, energy: incdet/align/gates.py. Or head, for classifiers with one head per task, where nothing
        # has to be gated. The release asks the ground truth.
        "GATE": "predicted_old",
        "BACKGROUND": 4,  # proposals per image beside the objects. Ours; the release takes objects only
        "LATENTS": 20000,  # regions at most. Ours; the release takes 450 steps' worth of regions
    }
    needs_teacher = True
    works_on = ("detection", "classification")

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._report: dict[str, Any] = {}
        if node.GATE != HEAD:
            find_gate(node.GATE)
        for key, known in (("ALIGNER", ALIGNERS), ("PRESET", tuple(PRESETS))):
            if node[key] not in known:
                raise ConfigError(f"METHOD.ELI.{key}: expected one of {', '.join(known)}, got {node[key]!r}.")

    def end_task(self, context: TaskContext) -> None:
        if not context.is_main:
            return
        path = context.task_folder / FILE
        if context.teacher is None:
            save_chain(path, [])
            return
        began = time.perf_counter()
        pairs = context.latent_pairs(context.view.images, self.cfg.BACKGROUND, self.cfg.LATENTS)
        collected = time.perf_counter()
        aligner = self.fit(pairs, derive_seed(context.cfg.SEED, "eli", context.task.index))
        save_chain(path, [*self._earlier(context), Link(aligner, context.task.num_old)], background=self.cfg.BACKGROUND)
        self._report = {
            "aligner": self.cfg.ALIGNER,
            "gate": self.cfg.GATE,
            "latents": len(pairs.old),
            "relative_drift": round(pairs.relative_drift().mean().item(), 4),
            "collect_seconds": round(collected - began, 1),
            "fit_seconds": round(time.perf_counter() - collected, 1),
        }

    def _earlier(self, context: TaskContext) -> list[Link]:
        """The links of the tasks before; the second task has none, unless its first model was itself aligned."""
        path = context.run_folder / f"task_{context.task.index - 1}" / FILE
        return load_chain(path) if context.task.index > 2 or path.exists() else []

    def fit(self, pairs: LatentPairs, seed: int) -> Aligner:
        """The aligner that the configuration asks for."""
        if self.cfg.ALIGNER == "mean_shift":
            return fit_mean_shift(pairs.old, pairs.new)
        if self.cfg.ALIGNER == "ridge":
            return fit_ridge(pairs.old, pairs.new, self.cfg.RIDGE_STRENGTH)
        if self.cfg.ALIGNER == "energy_paired":
            return fit_paired_energy(
                pairs.old, pairs.new, self.cfg.RIDGE_STRENGTH, self.cfg.ITERATIONS or ITERATIONS, seed
            )
        return fit_energy(pairs.old, pairs.new, self._settings(), seed)

    def _settings(self) -> EnergySettings:
        changes = {key.lower(): self.cfg[key] for key in ("ITERATIONS", "STEPS", "STEP_SIZE")}
        return replace(PRESETS[self.cfg.PRESET], **{key: value for key, value in changes.items() if value is not None})

    def aligner(self, folder: Path) -> RegionReading | None:
        return AlignerChain(load_chain(folder / FILE), find_gate(self.cfg.GATE)) if self.cfg.GATE != HEAD else None

    def read_out(self, folder: Path) -> RegionReading | None:
        return HeadwiseChain(load_chain(folder / FILE)) if self.cfg.GATE == HEAD else None

    def report(self) -> dict[str, Any]:
        return {"alignment": self._report} if self._report else {}
