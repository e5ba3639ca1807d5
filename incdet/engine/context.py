"""What the engine gives to methods around a task, and the stages of training that they may ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from fvcore.common.config import CfgNode
from lightning_fabric import Fabric
from torch import Tensor

from incdet.align.base import LatentPairs
from incdet.backends import read_model
from incdet.backends.base import Detector
from incdet.backends.weights import load_into, save_model
from incdet.data.records import DetectionDataset
from incdet.data.views import TaskView, TrainImage
from incdet.engine import inference, latents
from incdet.engine.learner import Learner
from incdet.engine.loop import train_task
from incdet.errors import MethodError
from incdet.methods.base import Method, Pass, TaskContext
from incdet.randomness import derive_seed
from incdet.structures import Detections
from incdet.tasks import TaskSpec, TaskStream

MODEL_FILE = "model.safetensors"


def task_context(
    cfg: CfgNode,
    fabric: Fabric,
    stream: TaskStream,
    task: TaskSpec,
    dataset: DetectionDataset,
    view: TaskView,
    detectors: tuple[Detector, Detector | None],
    run_folder: Path,
) -> TaskContext:
    """All that a method may look at, and ask for, around a task.

    Args:
        cfg: of the task.
        fabric: launched.
        stream: of the run.
        task: of it.
        dataset: the training set.
        view: what the task may see.
        detectors: the student and, where a method needs one, its teacher.
        run_folder: of the run; the task has its own in it.
    """
    student, teacher = detectors
    task_folder = run_folder / f"task_{task.index}"

    def detect(detector: Detector, images: Sequence[TrainImage], description: str) -> list[Detections]:
        return inference.detect(detector, [image.record.path for image in images], cfg, fabric, description)

    def features(detector: Detector, images: Sequence[TrainImage], description: str) -> list[Tensor]:
        return inference.visible_features(detector, images, cfg, fabric, description)

    def passes(detector: Detector, images: Sequence[TrainImage], description: str) -> Iterator[Pass]:
        return inference.passes(detector, images, task, cfg, fabric, description)

    def latent_pairs(images: Sequence[TrainImage], background: int, limit: int) -> LatentPairs:
        if teacher is None:
            raise MethodError("Latents in pairs need a teacher: the method must set needs_teacher.")
        seed = derive_seed(cfg.SEED, "latents", task.index)
        return latents.collect_pairs(teacher, student, images, cfg, fabric, background, limit, seed)

    def train(
        detector: Detector, stage_view: TaskView, name: str, solver: Mapping[str, Any], methods: Sequence[Method]
    ) -> None:
        train_stage(detector, stage_view, task_folder / name, _with_solver(cfg, solver), fabric, methods)

    return TaskContext(
        cfg=cfg,
        stream=stream,
        task=task,
        dataset=dataset,
        view=view,
        student=student,
        teacher=teacher,
        run_folder=run_folder,
        task_folder=task_folder,
        detect=detect,
        features=features,
        passes=passes,
        latent_pairs=latent_pairs,
        train=train,
        average=partial(_average, fabric),
        is_main=fabric.is_global_zero,
    )


def train_stage(
    detector: Detector, view: TaskView, folder: Path, cfg: CfgNode, fabric: Fabric, methods: Sequence[Method]
) -> None:
    """Train a detector on a view beside the task itself; what is finished in ``folder`` is loaded instead.

    Args:
        detector: changed in place.
        view: its task names the classes that the detector knows.
        folder: of the stage, with a log, a state and a model of its own.
        cfg: with the stage's solver.
        fabric: launched.
        methods: that add to the losses.
    """
    model = folder / MODEL_FILE
    if model.exists():
        load_into(detector, read_model(model)[0], strict=True, source=str(model))
        return
    folder.mkdir(parents=True, exist_ok=True)
    learner = Learner(detector, None, methods, view.task)
    train_task(learner, view, cfg, fabric, folder, folder / "metrics.jsonl")
    if fabric.is_global_zero:
        save_model(model, detector.state_dict(), {})
        (folder / "state.pt").unlink(missing_ok=True)
    fabric.barrier()


def _average(fabric: Fabric, values: Tensor) -> Tensor:
    return cast("Tensor", fabric.all_reduce(values, reduce_op="mean"))


def _with_solver(cfg: CfgNode, values: Mapping[str, Any]) -> CfgNode:
    cfg = cfg.clone()
    cfg.merge_from_list([part for key, value in values.items() for part in (f"SOLVER.{key}", value)])
    return cfg
