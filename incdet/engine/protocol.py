"""What a result must say of how it was obtained, and which runs may share a first task."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

import incdet
from incdet.backends.models import weights_file
from incdet.data.catalog import load_dataset
from incdet.data.protocols import dataset_stream
from incdet.data.records import DetectionDataset
from incdet.data.views import TaskView, first_task_alone, hold_out, task_view
from incdet.errors import ConfigError, DataError
from incdet.evaluation.classification import accuracies, multi_label_ap
from incdet.evaluation.predictions import Predictions
from incdet.tasks import TaskSpec, TaskStream

HELD_OUT_SEED = 0  # fixed, so that recipes of runs with different seeds are compared on the same images


@dataclass(frozen=True)
class Problem:
    """The data of a run and how they are taught."""

    cfg: CfgNode
    train: DetectionDataset
    test: DetectionDataset
    stream: TaskStream

    @classmethod
    def load(cls, cfg: CfgNode) -> Problem:
        """Read the data that ``cfg`` names.

        Raises:
            ConfigError: a proxy is to be tested on the test images.
            DataError: the data cannot be used, or training and test classes differ.
            SplitError: the split does not fit the classes.
        """
        classes = tuple(cfg.DATASETS.CLASSES) or None
        train = load_dataset(",".join(cfg.DATASETS.TRAIN), cfg.DATASETS.ROOT, classes)
        if cfg.TASKS.PROXY:
            train = _first_task_alone(cfg, train)
        if cfg.DATASETS.HELD_OUT > 0:
            train, test = hold_out(train, cfg.DATASETS.HELD_OUT, HELD_OUT_SEED)
        else:
            test = load_dataset(",".join(cfg.DATASETS.TEST), cfg.DATASETS.ROOT, train.classes)
        if set(train.classes) != set(test.classes):
            raise DataError(
                f"DATASETS.TRAIN and DATASETS.TEST list different classes; only one has: "
                f"{', '.join(sorted(set(train.classes) ^ set(test.classes)))}."
            )
        return cls(cfg, train, test, _proxy_stream(cfg, train) if cfg.TASKS.PROXY else _stream(cfg, train))

    def view(self, task: TaskSpec) -> TaskView:
        """What the task may see."""
        cfg = self.cfg
        return task_view(self.train, self.stream, task, cfg.TASKS.PROTOCOL, cfg.DATASETS.DIFFICULT, cfg.SEED)

    def scores(self, predictions: Predictions, task: TaskSpec) -> dict[str, dict[str, float | None]] | None:
        """What takes the place of a detector's AP: a classifier's accuracies or label ranking; None for a detector."""
        if self.cfg.TASK == "detection":
            return None
        if self.cfg.MODEL.CLASSIFIER.MULTI_LABEL:
            return multi_label_ap(self.test, predictions, task)
        return accuracies(self.test, predictions, self.stream, task, self.cfg.MODEL.CLASSIFIER.MULTI_HEAD)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        return {"train": self.train.fingerprint(), "test": self.test.fingerprint()}

    def block(self, memory: dict[str, int]) -> dict[str, Any]:
        """The protocol block that every result carries."""
        cfg, stream = self.cfg, self.stream
        return {
            "split": stream.split,
            "proxy_of": cfg.TASKS.SPLIT if cfg.TASKS.PROXY else None,
            "protocol": cfg.TASKS.PROTOCOL,
            "classes": list(stream.classes),
            "class_order": stream.order,
            "class_order_hash": stream.order_hash,
            "tasks": [list(task.new) for task in stream],
            "difficult": cfg.DATASETS.DIFFICULT,
            "train": {"name": self.train.name, "images": len(self.train), "fingerprint": self.fingerprints["train"]},
            "test": {"name": self.test.name, "images": len(self.test), "fingerprint": self.fingerprints["test"]},
            "held_out": cfg.DATASETS.HELD_OUT > 0,
            "memory": memory,
            "seed": cfg.SEED,
            "backend": cfg.BACKEND,
            "model": model_name(cfg),
            "commit": git_commit(),
            "version": incdet.__version__,
            "stamps": list(cfg.STAMPS),
        }


def _stream(cfg: CfgNode, train: DetectionDataset) -> TaskStream:
    tasks = cfg.TASKS
    return dataset_stream(train, tasks.SPLIT, tasks.ORDER, tasks.LISTED, tasks.PROTOCOL)


def _proxy_stream(cfg: CfgNode, train: DetectionDataset) -> TaskStream:
    return dataset_stream(train, cfg.TASKS.PROXY, "listed", train.classes, cfg.TASKS.PROTOCOL)


def _first_task_alone(cfg: CfgNode, train: DetectionDataset) -> DetectionDataset:
    """The part of ``train`` that a proxy is made of."""
    if cfg.DATASETS.HELD_OUT <= 0:
        raise ConfigError(
            f"TASKS.PROXY {cfg.TASKS.PROXY} is for choosing a recipe, and the test images are to play no part in that: "
            "set DATASETS.HELD_OUT to a share of the first task's images, e.g. 0.2."
        )
    return first_task_alone(train, _stream(cfg, train), cfg.TASKS.PROTOCOL, cfg.DATASETS.DIFFICULT, cfg.SEED)


def model_name(cfg: CfgNode) -> str:
    """What results call the model: network and neck, or Detectron2's names of its own parts."""
    if cfg.BACKEND == "detectron2" and cfg.MODEL.BACKBONE.NAME.startswith("build_"):
        return f"{cfg.MODEL.BACKBONE.NAME.removeprefix('build_')}-{cfg.MODEL.RESNETS.DEPTH}, {cfg.MODEL.ROI_HEADS.NAME}"
    if cfg.TASK == "classification":
        heads = "one head per task" if cfg.MODEL.CLASSIFIER.MULTI_HEAD else "one head"
        heads = "one sigmoid per class" if cfg.MODEL.CLASSIFIER.MULTI_LABEL else heads
        return f"{cfg.MODEL.BACKBONE.NAME}, {cfg.MODEL.CLASSIFIER.HEAD}, {heads}"
    return f"{cfg.MODEL.BACKBONE.NAME}-{cfg.MODEL.NECK}"


def first_task_key(cfg: CfgNode, view: TaskView, world_size: int) -> str:
    """A hash of all that decides what the first task's detector becomes."""
    decisive = {
        "version": incdet.__version__,
        "backend": cfg.BACKEND,
        "seed": cfg.SEED,
        "processes": world_size,
        "model": {
            key: value for key, value in cfg.MODEL.items() if key != "CLASSIFIER" or cfg.TASK == "classification"
        },
        "weights": _file_hash(cfg.MODEL.WEIGHTS),
        "input": cfg.INPUT,
        "grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "solver": {key: value for key, value in cfg.SOLVER.items() if key != "CHECKPOINT_PERIOD"},
        "classes": view.task.new,
        "view": _view_hash(view),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _view_hash(view: TaskView) -> str:
    """Over ids, labels and the files' sizes: pictures redrawn or recompressed under the same labels change them."""
    digest = hashlib.sha256()
    for image in view.images:
        record = image.record
        digest.update(f"{record.image_id} {record.width} {record.height} {_file_size(record.path)}".encode())
        for array in (image.boxes, image.labels, image.weights, image.use_rpn, image.use_roi):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Check DATASETS.ROOT, or restore the image."
        ) from error


def _file_hash(weights: str) -> str:
    path = weights_file(weights) if weights else Path()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else weights


def git_commit() -> str | None:
    """The commit of the incdet checkout in use, marked when files differ from it; None outside a checkout."""
    checkout = Path(incdet.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(  # noqa: S603  (fixed words)
            command, cwd=checkout, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
