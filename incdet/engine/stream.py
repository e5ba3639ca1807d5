"""A run: the tasks of a stream, one after the other, each learned, remembered and tested."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from lightning_fabric import Fabric

import incdet
from incdet.backends import build_detector, read_model
from incdet.backends.base import Detector
from incdet.backends.weights import load_into, save_model
from incdet.config import config_for_task, diff, get_cfg
from incdet.data.manifest import protocol_manifest
from incdet.data.views import TaskView
from incdet.engine import inference
from incdet.engine.context import MODEL_FILE, task_context
from incdet.engine.learner import Learner, freeze_copy
from incdet.engine.loop import Trained, train_task
from incdet.engine.protocol import Problem, first_task_key
from incdet.engine.slots import install_slots
from incdet.errors import ConfigError
from incdet.evaluation.predictions import Predictions, write_predictions
from incdet.evaluation.results import read_task_result, run_results, task_result, write_result
from incdet.files import atomic_path, read_json, remove_leftovers, write_atomic, write_json
from incdet.methods import build_methods
from incdet.methods.base import TaskContext
from incdet.randomness import derive_seed, seed_torch
from incdet.replay.memory import memory_size
from incdet.tasks import TaskSpec
from incdet.tensors import bytes_beside

# Keys that change neither the data, nor the model, nor what is learned: a resumed run may have others.
FREE_ON_RESUME = (
    "DATALOADER.NUM_WORKERS", "DATASETS.ROOT", "FIRST_TASK_CACHE", "LOG_PERIOD", "NAME", "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD", "TEST.IMS_PER_BATCH",
)  # fmt: skip


@dataclass(frozen=True)
class Lesson:
    """One task of a run, ready to be trained."""

    context: TaskContext
    view: TaskView  # what the task trains on, pseudo-labels and replayed images among it
    learner: Learner  # maps a batch to named losses; its only parameters are the student's


class Run:
    """One run in its folder. ``learn`` does everything; what is finished is never done again."""

    def __init__(self, cfg: CfgNode, fabric: Fabric, resume: bool = False) -> None:
        """Read the data and take hold of the folder.

        Raises:
            ConfigError: the folder holds another run, or this one and ``resume`` is False.
        """
        self.cfg = cfg
        self.fabric = fabric
        self.folder = Path(cfg.OUTPUT_DIR)
        self.methods = build_methods(cfg)
        self.problem = Problem.load(cfg)
        self.stream = self.problem.stream
        self._claim_folder(resume)

    @property
    def name(self) -> str:
        return self.cfg.NAME or " + ".join(self.cfg.METHODS)

    def learn(self, last_task: int | None = None) -> dict[str, Any]:
        """Learn the tasks up to ``last_task`` (all of them by default) and test after each.

        Returns:
            The content of ``results.json``.
        """
        for task in self._tasks(last_task):
            if not (self.task_folder(task) / "result.json").exists():
                self._learn_task(task)
        return self._conclude()

    def evaluate(self, last_task: int | None = None) -> dict[str, Any]:
        """Test the models of the finished tasks again.

        Raises:
            ConfigError: a task has no model yet.
        """
        for task in self._tasks(last_task):
            folder = self.task_folder(task)
            if not (folder / MODEL_FILE).exists():
                raise ConfigError(f"{folder} holds no model; learn task {task.index} before testing it.")
            student = self.finished(task)
            before = folder / "result.json"
            kept = read_task_result(before) if before.exists() else {"train": {}, "extra": {}}
            self._test(student, task, kept["train"], kept["extra"])
        return self._conclude()

    def task_folder(self, task: TaskSpec) -> Path:
        return self.folder / f"task_{task.index}"

    def _tasks(self, last: int | None) -> Sequence[TaskSpec]:
        count = len(self.stream)
        if last is not None and not 1 <= last <= count:
            raise ConfigError(f"--task: TASKS.SPLIT {self.stream.split} has tasks 1 to {count}, got {last}.")
        return self.stream.tasks[:last]

    # ------------------------------------------------------------------ one task

    def open_task(self, index: int) -> Lesson:
        """Prepare a task for training: what ``learn`` does before its loop, for a loop of your own.

        Args:
            index: of the task, counted from 1; the tasks before it are finished.

        Raises:
            ConfigError: there is no such task, or the one before it has no model.
        """
        task = self._tasks(index)[-1]
        return self._begin(self._context(task))

    def close_task(self, lesson: Lesson, trained: Trained) -> dict[str, Any]:
        """Keep what a lesson has taught, let the methods end the task, and test.

        Returns:
            The content of ``results.json``.
        """
        self._finish(lesson.context, *self._keep(lesson, trained))
        return self._conclude()

    def _learn_task(self, task: TaskSpec) -> None:
        context = self._context(task)
        model, shared = context.task_folder / MODEL_FILE, self._shared_model(context)
        if shared is not None and shared.exists() and self.fabric.is_global_zero:
            _copy(shared, model)
        self.fabric.barrier()
        if model.exists():
            metadata = self._load_model(model, context.student)
            train, extra = json.loads(metadata["train"]), json.loads(metadata["extra"])
        else:
            lesson = self._begin(context)
            trained = train_task(
                lesson.learner,
                lesson.view,
                context.cfg,
                self.fabric,
                context.task_folder,
                self.folder / "metrics.jsonl",
            )
            train, extra = self._keep(lesson, trained)
        self._finish(context, train, extra)
        if shared is not None and not shared.exists() and self.fabric.is_global_zero:
            _copy(model, shared)
        self.fabric.barrier()

    def _begin(self, context: TaskContext) -> Lesson:
        view = context.view
        for method in self.methods:
            view = method.training_data(view, context)
            method.begin_task(context)
        return Lesson(context, view, Learner(context.student, context.teacher, self.methods, context.task))

    def _keep(self, lesson: Lesson, trained: Trained) -> tuple[dict[str, Any], dict[str, Any]]:
        """Refine and write the model; returns what its metadata and the result say of training and methods."""
        for method in self.methods:
            method.refine(lesson.context)
        train, extra = {**asdict(trained), "images": len(lesson.view)}, self._reports()
        self._save_model(lesson.context, train, extra)
        return train, extra

    def _finish(self, context: TaskContext, train: dict[str, Any], extra: dict[str, Any]) -> None:
        for method in self.methods:
            method.end_task(context)
        self.fabric.barrier()
        self._test(context.student, context.task, train, {**extra, **self._reports()})
        if self.fabric.is_global_zero:
            (context.task_folder / "state.pt").unlink(missing_ok=True)
        self.fabric.barrier()

    def _reports(self) -> dict[str, Any]:
        return {key: value for method in self.methods for key, value in method.report().items()}

    @cached_property
    def task_configs(self) -> list[CfgNode]:
        """The configuration of each task, after the methods had their say."""
        plain = [config_for_task(self.cfg, task.index) for task in self.stream]
        configs = []
        for index in range(len(plain)):
            cfg = plain[index]
            for method in self.methods:
                cfg = method.task_config([*plain[:index], cfg])
            configs.append(cfg)
        return configs

    def _student_and_teacher(self, task: TaskSpec, cfg: CfgNode) -> tuple[Detector, Detector | None]:
        seed_torch(derive_seed(self.cfg.SEED, "model", task.index))
        if not task.old or any(method.from_scratch for method in self.methods):
            seed_torch(derive_seed(self.cfg.SEED, "model", 1))
            return build_detector(cfg, task.num_seen).to(self.fabric.device), None
        student = build_detector(_without_weights(cfg), task.num_old)
        previous = self.task_folder(self.stream[task.index - 2])
        self._load_model(previous / MODEL_FILE, student)
        student.to(self.fabric.device)
        needed = any(method.needs_teacher for method in self.methods)
        teacher = freeze_copy(student) if needed else None
        student.expand_classes(task.num_new)
        return student, teacher

    def finished(self, task: TaskSpec) -> Detector:
        """The detector as a finished task left it."""
        student = build_detector(_without_weights(self.task_configs[task.index - 1]), task.num_seen)
        self._load_model(self.task_folder(task) / MODEL_FILE, student)
        return student.to(self.fabric.device)

    def _context(self, task: TaskSpec) -> TaskContext:
        cfg = self.task_configs[task.index - 1]
        detectors, view = self._student_and_teacher(task, cfg), self.problem.view(task)
        return task_context(cfg, self.fabric, self.stream, task, self.problem.train, view, detectors, self.folder)

    def _test(self, student: Detector, task: TaskSpec, train: dict[str, Any], extra: dict[str, Any]) -> None:
        """Detect on all test images and write predictions and result; no process goes on before they are there."""
        began = time.perf_counter()
        test, folder = self.problem.test, self.task_folder(task)
        install_slots(student, self.methods, folder)
        paths = [image.path for image in test.images]
        found = inference.detect(student, paths, self.cfg, self.fabric, f"test after task {task.index}")
        if self.fabric.is_global_zero:
            ids = [image.image_id for image in test.images]
            predictions = Predictions.from_detections(zip(ids, found, strict=True), task.seen)
            write_predictions(folder / "predictions.json", predictions)
            result = task_result(
                test,
                predictions,
                self.stream,
                task,
                scores=self.problem.scores(predictions, task),
                protocol=self._protocol(task),
                stamps=self.cfg.STAMPS,
                train=train,
                evaluate={"seconds": round(time.perf_counter() - began, 2)},
                extra=extra,
            )
            write_result(folder / "result.json", result)
        self.fabric.barrier()

    # ------------------------------------------------------------------ files

    def _claim_folder(self, resume: bool) -> None:
        path = self.folder / "config.yaml"
        # A run that failed before it kept anything may begin anew, with the mended configuration.
        if path.exists() and any(self.folder.glob("task_*")):
            if not resume:
                raise ConfigError(
                    f"OUTPUT_DIR {self.folder} holds a run already. Go on with it by --resume, or take another folder."
                )
            before = get_cfg()
            before.merge_from_file(path)
            changed = {k: v for k, v in diff(self.cfg, before).items() if k not in FREE_ON_RESUME}
            if changed:
                lines = "\n".join(f"  {key}: now {now!r}, then {then!r}" for key, (now, then) in changed.items())
                raise ConfigError(
                    f"{self.folder} was begun with another configuration:\n{lines}\nUse that one, or choose another "
                    "OUTPUT_DIR."
                )
            self._refuse_other_data()
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            remove_leftovers(self.folder)
            cfg = self.cfg
            manifest = protocol_manifest(
                self.problem.train, self.stream, cfg.TASKS.PROTOCOL, cfg.DATASETS.DIFFICULT, cfg.SEED
            )
            write_json(self.folder / "protocol.json", manifest)
            write_atomic(path, cfg.dump())

    def _refuse_other_data(self) -> None:
        """DATASETS.ROOT may move between two lives of a run, its content may not change."""
        path = self.folder / "protocol.json"
        before = read_json(path, "the manifest of the run's split")["fingerprint"] if path.exists() else None
        now = self.problem.fingerprints["train"]
        if before not in (None, now):
            raise ConfigError(
                f"{self.folder} was begun with other training images or labels: the fingerprint of DATASETS.TRAIN "
                f"{', '.join(self.cfg.DATASETS.TRAIN)} was {before[:12]} and is {now[:12]}. Restore them, or choose "
                "another OUTPUT_DIR."
            )

    def _save_model(self, context: TaskContext, train: dict[str, Any], extra: dict[str, Any]) -> None:
        if self.fabric.is_global_zero:
            metadata = {
                "incdet": incdet.__version__,
                "classes": json.dumps(context.task.seen),
                "config": context.cfg.dump(),
                "train": json.dumps({**train, "seconds": round(train["seconds"], 1)}),
                "extra": json.dumps(extra),
            }
            save_model(context.task_folder / MODEL_FILE, context.student.state_dict(), metadata)
        self.fabric.barrier()

    def _load_model(self, path: Path, student: Detector) -> dict[str, str]:
        """Load a finished model; returns what ``_save_model`` wrote beside its weights."""
        state, metadata = read_model(path)
        load_into(student, state, strict=True, source=str(path))
        return metadata

    def _shared_model(self, context: TaskContext) -> Path | None:
        """Where runs with the same first task keep its model; None where it cannot be shared."""
        if context.task.old or not self.cfg.FIRST_TASK_CACHE or any(m.changes_first_task for m in self.methods):
            return None
        key = first_task_key(context.cfg, context.view, self.fabric.world_size)
        return Path(self.cfg.FIRST_TASK_CACHE) / key / MODEL_FILE

    def _protocol(self, task: TaskSpec) -> dict[str, Any]:
        beside = bytes_beside(self.task_folder(task) / MODEL_FILE)
        return self.problem.block({**memory_size(self.folder / "memory"), "method_bytes": beside})

    def _conclude(self) -> dict[str, Any]:
        """Sum up all finished tasks, those after ``--task`` too."""
        paths = [self.task_folder(task) / "result.json" for task in self.stream]
        results = [read_task_result(path) for path in takewhile(Path.exists, paths)]
        protocol = self._protocol(self.stream[len(results) - 1])
        content = run_results(self.name, list(self.cfg.METHODS), protocol, results)
        if self.fabric.is_global_zero:
            write_result(self.folder / "results.json", content)
        return content


def _without_weights(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    return cfg


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
