"""What aligning is worth to a finished run: every aligner behind every gate, on the same regions of the test images.

Aligners need no training of the detector, so any run can be studied, whatever its methods. The oracle gate is told
which regions lie on objects of old classes; it is here for comparison only, and its rows carry its stamp.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torchvision.ops import box_iou
from tqdm import tqdm

from incdet.align.base import Aligner, LatentPairs
from incdet.align.energy import EnergyAligner
from incdet.align.gates import GATES, AlignerChain, HeadwiseChain, Link, Oracle
from incdet.backends.base import Detector, scale_of
from incdet.data.images import read_image
from incdet.data.protocols import ObjectTable
from incdet.engine.latents import collect_pairs
from incdet.engine.stream import Run
from incdet.errors import ConfigError
from incdet.evaluation.predictions import Predictions
from incdet.evaluation.results import task_result
from incdet.files import write_json
from incdet.methods.eli import ALIGNERS, HEAD, Eli
from incdet.randomness import derive_seed
from incdet.structures import Batch, Detections, RegionOutputs
from incdet.tasks import TaskSpec

FILE = "alignment.json"
ORACLE_IOU = 0.5  # a region that overlaps a test object by this much has its class
BINS = 60  # of the score histograms


@dataclass
class Reading:
    """One aligner behind one gate, and what came of it."""

    aligner: str  # "" = none
    gate: str
    found: list[Detections] = field(default_factory=list)
    seconds: float = 0.0
    moved: int = 0

    @property
    def stamps(self) -> list[str]:
        return ["oracle"] if self.gate == "oracle" else []


def study_alignment(run: Run, index: int, presets: Sequence[str], background: int, limit: int) -> dict[str, Any]:
    """Fit every aligner from the model before task ``index`` to the one after it, and test with each.

    Args:
        run: with the tasks ``index - 1`` and ``index`` finished.
        index: of the task, counted from 2.
        presets: of the energy networks to fit; the other aligners are fitted once, as ``Eli`` does by default.
        background: proposals per image beside its objects, for the fit.
        limit: latents at most.

    Returns:
        What is written to ``task_<index>/alignment.json``.

    Raises:
        ConfigError: there is no such task, a model is missing, or the run is not tested by its head alone.
    """
    check_study(run, index)
    task, before = run.stream[index - 1], run.stream[index - 2]
    previous, current = run.finished(before), run.finished(task)
    cfg = run.task_configs[index - 1]
    seed = derive_seed(run.cfg.SEED, "alignment", index)
    images = run.problem.view(task).images
    pairs = collect_pairs(previous, current, images, cfg, run.fabric, background, limit, seed)
    aligners, seconds = _fit(pairs, presets, seed)
    readings = [Reading("", "")]
    headwise = cfg.TASK == "classification" and cfg.MODEL.CLASSIFIER.MULTI_HEAD
    for name, aligner in aligners.items():
        gates = [gate for gate in GATES if gate != "energy" or isinstance(aligner, EnergyAligner)]
        readings += [Reading(name, gate) for gate in ((HEAD,) if headwise else (*gates, "oracle"))]
    _read_test_images(run, task, current, aligners, readings)
    result = {
        "schema": 1,
        "task": index,
        "latents": len(pairs.old),
        "relative_drift": _drift(pairs),
        "fit_seconds": seconds,
        "readings": [_scored(run, task, reading) for reading in readings],
        "scores": {name: _histograms(a, pairs) for name, a in aligners.items() if isinstance(a, EnergyAligner)},
    }
    write_json(run.task_folder(task) / FILE, result)
    return result


def check_study(run: Run, index: int) -> None:
    """Refuse a task that cannot be studied.

    The study reads by the predictor, with and without an aligner. A method that reads otherwise follows the drift in
    its own way (class means, stored features) or needs none (masks): there the predictor alone is not what the run was
    tested with, and an aligner would move features away from where the method expects them.

    Raises:
        ConfigError: there is no such task, or a method reads features or images in a way of its own.
    """
    if not 2 <= index <= len(run.stream):
        raise ConfigError(f"--task: aligning needs a task before it, so 2 to {len(run.stream)}; got {index}.")
    folder = run.task_folder(run.stream[index - 1])
    for name, method in zip(run.cfg.METHODS, run.methods, strict=True):
        if isinstance(method, Eli):  # its own reading is among the rows
            continue
        remedy = f", or learn it with {method.key('READING')}: head" if "READING" in method.cfg else ""
        if any(hook(folder) is not None for hook in (method.aligner, method.read_out, method.conditions)):
            raise ConfigError(
                f"{run.folder}: expected a run that is tested by its head alone, got METHODS: {name}, which reads "
                "features in a way of its own: the study's first row would not be the run's result. Leave the run "
                f"out{remedy}."
            )


def _fit(pairs: LatentPairs, presets: Sequence[str], seed: int) -> tuple[dict[str, Aligner], dict[str, float]]:
    """Every kind of aligner by the name it gets in the table, and the seconds that its fit took."""
    choices = {f"energy ({preset})": {"ALIGNER": "energy", "PRESET": preset} for preset in presets}
    choices |= {kind: {"ALIGNER": kind} for kind in ALIGNERS if kind != "energy"}
    aligners: dict[str, Aligner] = {}
    seconds: dict[str, float] = {}
    for name, choice in choices.items():
        began = time.perf_counter()
        aligners[name] = Eli(CfgNode({**Eli.DEFAULTS, **choice})).fit(pairs, seed)
        seconds[name] = round(time.perf_counter() - began, 2)
    return aligners, seconds


@torch.no_grad()
def _read_test_images(
    run: Run, task: TaskSpec, detector: Detector, aligners: Mapping[str, Aligner], readings: Sequence[Reading]
) -> None:
    """Compute the regions of every test image once, and let each reading make its detections of them."""
    detector.eval()
    device = run.fabric.device
    for aligner in aligners.values():
        aligner.to(device)
    for pixels, objects in tqdm(_test_batches(run), desc="test images", leave=False):
        images = [image.to(device) for image in pixels]
        outputs = detector.image_pass(Batch(images, targets=None))
        regions = detector.region_pass(outputs)
        labels = _true_labels(regions, objects, images, outputs.image_sizes)
        for reading in readings:
            began = time.perf_counter()
            features = regions.features
            links = [Link(aligners[reading.aligner], task.num_old)] if reading.aligner else []
            if links and reading.gate != HEAD:
                gate = Oracle(labels) if reading.gate == "oracle" else GATES[reading.gate]
                features = AlignerChain(links, gate)(features, detector.predictor)
                reading.moved += int((features != regions.features).any(dim=1).sum())
            logits, deltas = detector.predictor(features)
            if reading.gate == HEAD:
                logits = HeadwiseChain(links)(features, detector.predictor)
                reading.moved += len(features)
            reading.seconds += time.perf_counter() - began
            reading.found += [found.cpu() for found in detector.detections(outputs, logits, deltas, images)]


def _test_batches(run: Run) -> Iterator[tuple[list[Tensor], list[tuple[Tensor, Tensor]]]]:
    """Images, and their true boxes and labels in stream order, which only the oracle is shown."""
    test, size = run.problem.test, run.cfg.TEST.IMS_PER_BATCH
    table = ObjectTable.of(test, run.stream.classes)
    for start in range(0, len(test), size):
        numbers = range(start, min(start + size, len(test)))
        rows = [table.image == number for number in numbers]
        yield (
            [read_image(test.images[number].path).float().div_(255) for number in numbers],
            [(torch.from_numpy(table.boxes[row]), torch.from_numpy(table.labels[row])) for row in rows],
        )


def _true_labels(
    regions: RegionOutputs,
    objects: Sequence[tuple[Tensor, Tensor]],
    images: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """The class of the object that each region lies on, -1 for none: (R,)."""
    labels = []
    for found, (boxes, classes), image, size in zip(
        regions.boxes_per_image(len(images)), objects, images, sizes, strict=True
    ):
        if not len(boxes) or not len(found):
            labels.append(torch.full((len(found),), -1))
            continue
        resized = boxes * scale_of(boxes, size, image.shape[-2:])
        overlap, best = box_iou(found.cpu(), resized).max(dim=1)
        labels.append(torch.where(overlap >= ORACLE_IOU, classes[best], -1))
    return torch.cat(labels)


def _scored(run: Run, task: TaskSpec, reading: Reading) -> dict[str, Any]:
    ids = [image.image_id for image in run.problem.test.images]
    predictions = Predictions.from_detections(zip(ids, reading.found, strict=True), task.seen)
    scores = run.problem.scores(predictions, task)
    result = task_result(run.problem.test, predictions, run.stream, task, scores=scores, stamps=reading.stamps)
    metric = next(iter(result["ap"]))
    return {
        "aligner": reading.aligner,
        "gate": reading.gate,
        "stamps": reading.stamps,
        "groups": result["groups"],
        "ap": {metric: result["ap"][metric]},
        "seconds": round(reading.seconds, 2),  # of gate, aligner and predictor, over all test images
        "moved": reading.moved,
    }


def _drift(pairs: LatentPairs) -> dict[str, float]:
    """How far the latents of the task's objects and of its background moved, as a share of their length."""
    share = pairs.relative_drift()
    rows = {"objects": pairs.labels >= 0, "background": pairs.labels < 0}
    return {name: round(share[row].mean().item(), 4) for name, row in rows.items() if row.any()}


def _histograms(aligner: EnergyAligner, pairs: LatentPairs) -> dict[str, list[float]]:
    """How often each score occurs among old latents, new ones, and new ones after the walk."""
    device = aligner.threshold.device
    latents = {"old": pairs.old, "new": pairs.new, "walked": aligner(pairs.new.to(device))}
    scores = {name: aligner.network(rows.to(device)).cpu().numpy() for name, rows in latents.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), BINS)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in scores.items()}
    return {"edges": edges.round(5).tolist(), **counts}
