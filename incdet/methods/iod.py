"""iOD: a layer that preconditions the others' gradients, distillation, and a last look at every class (Joseph et al.,
Incremental Object Detection via Meta-Learning, TPAMI 2021).

The last layer of the box head is the *warp layer*: the gradients of all earlier layers pass through it. A task leaves
it fixed; every GAMMA steps it alone is trained, on stored region features of all classes seen, so that it shapes the
gradients for all of them. After the task, a few images of every class train the whole detector.

The release does something else, ``VARIANT: release`` here: now and then all parameters take a step on one image of the
task, and nothing of the old classes is stored. docs/reproducibility.md has what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from incdet.data.views import TaskView
from incdet.errors import ConfigError
from incdet.losses.distillation import student_old_deltas
from incdet.losses.knowledge import box_distance, feature_distance, softened_divergence
from incdet.methods.base import Step, TaskContext
from incdet.methods.replay import Replay
from incdet.replay.features import FeatureStore
from incdet.replay.memory import stored_images
from incdet.structures import Batch, RegionOutputs, Target

FILE = "features.safetensors"
BOX_HEAD_LOSSES = ("loss_cls", "loss_box_reg")


class Iod(Replay):
    """Warped gradients and distillation; replay's memory of every class for a balanced fine-tuning afterwards."""

    DEFAULTS: ClassVar = {
        "VARIANT": "paper",  # or release: see above
        "ALPHA": 0.2,  # of distillation against detection: L = ALPHA L_distill + (1 - ALPHA) L_det
        "TEMPERATURE": 6.0,  # of the distilled probabilities (release)
        "GAMMA": 20,  # steps between two warp steps
        "NU": 0.005,  # learning rate of the warp steps. The release takes its schedule's, which begins here
        "FEATURES_PER_CLASS": 100,  # region features stored
        "IMAGES_PER_CLASS": 10,  # stored for the fine-tuning; with BUDGET and SELECTION as in replay
        "BUDGET": 0,
        "SELECTION": "random",
        "FINETUNE_ITER": 5000,  # the release's for 10+10; 0 = no fine-tuning
        "FINETUNE_LR": 1e-4,
    }
    needs_teacher = True
    replaces = ("loss_rpn_cls", "loss_rpn_loc", *BOX_HEAD_LOSSES)
    works_on: ClassVar[tuple[str, ...]] = ("detection",)

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        if node.VARIANT not in ("paper", "release"):
            raise ConfigError(f"METHOD.IOD.VARIANT: expected paper or release, got {node.VARIANT!r}.")
        self._paper = node.VARIANT == "paper"
        self._warp: list[nn.Parameter] = []  # empty where nothing is warped: in the first task, and between tasks
        self._steps = 0
        self._store = FeatureStore(node.FEATURES_PER_CLASS)  # paper
        self._newest: dict[str, Any] = {}  # release: the image that a warp step is taken on

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        return view  # the memory is for the fine-tuning alone

    def begin_task(self, context: TaskContext) -> None:
        self._context, self._steps, self._newest = context, 0, {}
        if context.teacher is None:
            return
        self._warp = list(warp_layer(context.student.box_head).parameters())
        if self._paper:
            self._store.load(context.run_folder / "memory" / FILE, context.task.num_old)
            self._train_warp(False)

    # ------------------------------------------------------------------ task steps

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Detection and distillation; the old box head reads what the student pooled, so its drift alone counts."""
        if step.teacher is None:
            return {}
        alpha, num_old = self.cfg.ALPHA, step.task.num_old
        student, regions = step.student, step.student.regions
        with torch.no_grad():
            old = step.teacher.detector
            old_logits, old_deltas = old.predictor(old.box_features(regions.pooled))
        logits, deltas = regions.logits[:, :num_old], student_old_deltas(regions.deltas, num_old)
        features = feature_distance(student.images.features, step.teacher.images.features)
        detection = student.detector.losses(student.images, regions)
        self._remember(step)
        scaled = detection if self._paper else BOX_HEAD_LOSSES  # the release scales the box head's alone ...
        return {name: (1 - alpha if name in scaled else 1) * loss for name, loss in detection.items()} | {
            "loss_iod_cls": alpha * softened_divergence(logits, old_logits[:, :num_old], self.cfg.TEMPERATURE),
            "loss_iod_box": alpha * box_distance(deltas, old_deltas),
            "loss_iod_feature": (alpha if self._paper else 1) * features,  # ... and not this one
        }

    def _remember(self, step: Step) -> None:
        """Keep what the next warp step is taken on."""
        if self._paper:
            self._store.add(step.student.regions)
            return
        # The release stores each image under one of its classes, goes through them class by class, and keeps the losses
        # of the last image alone: the newest of the last class.
        for image, target in zip(step.batch.images, step.batch.targets or (), strict=True):
            if len(target):
                label = int(target.labels[torch.randint(len(target), (1,))])
                if label >= self._newest.get("label", 0):
                    self._newest = {"label": label, "image": image, "target": {**vars(target), "labelled": None}}

    # ------------------------------------------------------------------ warp steps

    @contextmanager
    def around_update(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Every GAMMA updates, a warp step. The release only clears the warp layer's gradient: it still decays."""
        for parameter in self._warp:
            if parameter.grad is not None:
                parameter.grad.zero_()
        yield
        self._steps += 1
        if self._warp and self._steps % self.cfg.GAMMA == 0:
            self._warp_step(self._warp if self._paper else list(parameters.values()))

    def _warp_step(self, trained: list[nn.Parameter]) -> None:
        """A plain gradient step, phi - NU * gradient of (L_cls + L_reg), averaged over the processes."""
        self._train_warp(True)
        loss = self._loss_of_features() if self._paper else self._loss_of_newest_image()
        gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
        self._train_warp(not self._paper)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.sub_(self._context.average(gradient), alpha=self.cfg.NU)

    def _loss_of_features(self) -> Tensor:
        """L_warp of everything in the store, through the box head as it is now."""
        detector = self._context.student
        stored = {name: part.to(self._warp[0].device) for name, part in self._store.state_dict().items()}
        if not stored:
            return self._nothing()
        stored["pooled"] = stored["pooled"].to(self._warp[0].dtype)
        with detector.evaluating():  # batch norms keep their statistics
            features = detector.box_features(stored["pooled"])
            logits, deltas = detector.predictor(features)
        one_image = torch.zeros_like(stored["labels"])
        regions = RegionOutputs(features=features, logits=logits, deltas=deltas, image_index=one_image, **stored)
        return sum(detector.region_losses(regions).values())

    def _loss_of_newest_image(self) -> Tensor:
        """L_warp of one image, from its pixels on."""
        detector, newest = self._context.student, self._newest
        if not newest:
            return self._nothing()
        images = detector.image_pass(Batch([newest["image"]], [Target(**newest["target"])]).to(self._warp[0].device))
        return sum(detector.region_losses(detector.region_pass(images)).values())

    def _nothing(self) -> Tensor:
        """The loss of a process that has stored nothing yet; the others wait for its gradient."""
        return self._warp[0].sum() * 0

    def _train_warp(self, trains: bool) -> None:
        for parameter in self._warp:
            parameter.requires_grad_(trains)

    # ------------------------------------------------------------------ after the task

    def refine(self, context: TaskContext) -> None:
        """Balanced fine-tuning of all parameters on the memory, the task's own classes among it."""
        self._train_warp(True)
        self._warp = []
        if context.teacher is None or not self.cfg.FINETUNE_ITER:
            return
        view = TaskView(context.task, tuple(stored_images(self.exemplars(context))))
        solver = {"MAX_ITER": self.cfg.FINETUNE_ITER, "BASE_LR": self.cfg.FINETUNE_LR, "WARMUP_ITERS": 0}
        fixed = {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": ()}
        context.train(context.student, view, "finetune", solver | fixed, ())

    def end_task(self, context: TaskContext) -> None:
        super().end_task(context)
        if self._paper and context.is_main:
            store, path = FeatureStore(self.cfg.FEATURES_PER_CLASS), context.run_folder / "memory" / FILE
            store.load(path, context.task.num_old)
            # Of the finished detector, not of training: a first task that is taken from the cache has none (ours).
            store.fill(context.student, context.view, context.cfg)
            store.save(path)

    def state_dict(self) -> dict[str, Any]:
        # Of several processes the first one's is kept: resumed, all go on from its store.
        return {"steps": self._steps, "store": self._store.state_dict(), "newest": self._newest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps, self._newest = state["steps"], state["newest"]
        self._store.load_state_dict(state["store"])


def warp_layer(box_head: nn.Module) -> nn.Module:
    """The last convolution or linear layer (in the release ``roi_heads.res5.2.conv3``)."""
    return [module for module in box_head.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
