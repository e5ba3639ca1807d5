"""Detectors and photographs so small that a training step takes milliseconds.

Four classes a, b, c, d are taught two by two. Images are noise of 64 by 96 pixels with one or two objects each.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from incdet.backends import build_detector
from incdet.backends.base import Detector
from incdet.config import get_cfg
from incdet.config.node import CfgNode
from incdet.data.loader import train_loader
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.data.views import TaskView, task_view
from incdet.engine.context import task_context
from incdet.engine.learner import Learner, freeze_copy
from incdet.methods.base import Method, TaskContext
from incdet.structures import Batch, Target
from incdet.tasks import TaskSpec, build_stream

CLASSES = ("a", "b", "c", "d")
STREAM = build_stream("2+2", CLASSES)
FIRST, SECOND = STREAM
HEIGHT, WIDTH = 64, 96
TEXTS = ("a", "bc", "ad", "cd", "b", "cb")  # the objects of six images


def tiny_config(neck: str = "fpn", *overrides: Any) -> CfgNode:
    """A narrow ResNet-18 with few proposals and regions; ``overrides`` are ``KEY, value`` pairs."""
    cfg = get_cfg()
    sizes = ((8,), (16,), (32,), (48,), (64,)) if neck == "fpn" else ((16, 32, 64),)
    pairs = {
        "MODEL.NECK": neck,
        "MODEL.BACKBONE.NAME": "resnet18",
        "MODEL.BACKBONE.NORM": "BN",
        "MODEL.BACKBONE.WIDTH": 8,
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.ANCHOR_GENERATOR.SIZES": sizes,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MAX_SIZE_TRAIN": 96,
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MAX_SIZE_TEST": 96,
        "SOLVER.IMS_PER_BATCH": 4,
        "DATALOADER.NUM_WORKERS": 0,
    }
    cfg.merge_from_list([item for pair in pairs.items() for item in pair])
    cfg.merge_from_list(overrides)
    return cfg


def tiny_detector(cfg: CfgNode, num_classes: int = 2, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return build_detector(cfg, num_classes)


def random_images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, HEIGHT, WIDTH, generator=generator) for _ in range(count)]


def random_batch(count: int = 2, num_classes: int = 2, seed: int = 0) -> Batch:
    """Noise with one to three boxes per image, 12 to 40 pixels wide."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for _ in range(count):
        objects = int(torch.randint(1, 4, (1,), generator=generator))
        corner = torch.rand(objects, 2, generator=generator) * torch.tensor([WIDTH - 40.0, HEIGHT - 40.0])
        size = 12 + 28 * torch.rand(objects, 2, generator=generator)
        labels = torch.randint(0, num_classes, (objects,), generator=generator)
        targets.append(Target.from_boxes(torch.cat([corner, corner + size], dim=1), labels))
    return Batch(random_images(count, seed), targets, [f"im{i}" for i in range(count)])


def one_image(boxes, labels, use_rpn=None, use_roi=None, weights=None) -> Batch:
    """Noise with the given objects."""
    target = Target.from_boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels))
    given = {"use_rpn": use_rpn, "use_roi": use_roi, "weights": weights}
    fields = {name: torch.tensor(value) for name, value in given.items() if value is not None}
    return Batch(random_images(1), [Target(**{**vars(target), **fields})])


def photographs(folder: Path, *texts: str) -> DetectionDataset:
    """Noise written as PNG files, one per text: a letter per object."""
    rng = np.random.default_rng(0)
    records = []
    for number, text in enumerate(texts):
        path = folder / f"im{number}.png"
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
        corners = np.array([[4 + 30 * i, 4 + 8 * i] for i in range(len(text))], dtype=np.float32).reshape(-1, 2)
        boxes = np.concatenate([corners, corners + 24], axis=1)
        labels = np.array([CLASSES.index(letter) for letter in text], dtype=np.int64)
        absent = np.zeros(len(text), dtype=bool)
        records.append(ImageRecord(f"im{number}", path, WIDTH, HEIGHT, boxes, labels, absent, absent.copy()))
    return DetectionDataset("tiny", CLASSES, tuple(records))


class World:
    """Two tasks on a small data set, with what the engine gives to methods, but without its training loop."""

    def __init__(self, folder: Path, cfg: CfgNode, texts: Sequence[str] = TEXTS, split: str = "2+2"):
        self.folder, self.cfg, self.stream = folder, cfg, build_stream(split, CLASSES)
        self.dataset = photographs(folder, *texts)
        self.fabric = Fabric(accelerator="cpu", devices=1)
        self.first = tiny_detector(cfg, self.stream[0].num_seen)

    def context(self, task: TaskSpec = SECOND, student: Any = None, teacher: Any = None, **changes: Any) -> TaskContext:
        (self.folder / f"task_{task.index}").mkdir(exist_ok=True)
        view = task_view(self.dataset, self.stream, task)
        detectors = student or self.first, teacher
        context = task_context(self.cfg, self.fabric, self.stream, task, self.dataset, view, detectors, self.folder)
        return replace(context, **changes)

    def begin_first(self, methods: Sequence[Method]) -> tuple[Learner, TaskView]:
        return self._begin(FIRST, methods, self.first, None)

    def begin_second(self, methods: Sequence[Method]) -> tuple[Learner, TaskView]:
        """End the first task, grow the student and let the methods prepare the second."""
        for method in methods:
            method.end_task(self.context(FIRST))
        if any(method.from_scratch for method in methods):
            return self._begin(SECOND, methods, tiny_detector(self.cfg, SECOND.num_seen), None)
        teacher = freeze_copy(self.first) if any(method.needs_teacher for method in methods) else None
        student = copy.deepcopy(self.first)
        student.expand_classes(SECOND.num_new)
        return self._begin(SECOND, methods, student, teacher)

    def batch(self, view: TaskView, iteration: int = 0) -> Batch:
        return next(iter(train_loader(view, self.cfg, range(iteration, iteration + 1))))

    def _begin(
        self, task: TaskSpec, methods: Sequence[Method], student: Detector, teacher: Detector | None
    ) -> tuple[Learner, TaskView]:
        context = self.context(task, student, teacher)
        view = context.view
        for method in methods:
            view = method.training_data(view, context)
            method.begin_task(context)
        return Learner(student.train(), teacher, methods, task), view
