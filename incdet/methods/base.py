"""What a method is: one class with its configuration, in one file named after it.

Every hook has a default, and methods compose: ``METHODS: [replay, pseudo_label]`` runs the hooks of both, in that
order. To add one, write ``incdet/methods/<name>.py`` with one subclass of :class:`Method`; nothing else is edited
(docs/adding_a_method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from incdet.align.base import LatentPairs
from incdet.data.records import DetectionDataset
from incdet.data.views import TaskView, TrainImage
from incdet.structures import Batch, Detections, ImageOutputs, RegionOutputs
from incdet.tasks import TaskSpec, TaskStream

# Called with region features (R, D) and the predictor, which makes logits and deltas of them; never given targets.
RegionReading = Callable[[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]], Tensor]


class DetectorLike(Protocol):
    """The part of a backend's detector that methods may use (``backends.base.Detector`` has it)."""

    @property
    def num_classes(self) -> int: ...

    def image_pass_like(self, outputs: ImageOutputs, share_frozen: bool = False) -> ImageOutputs: ...

    def region_pass(self, outputs: ImageOutputs, boxes: list[Tensor] | None = None) -> RegionOutputs: ...

    def region_features(self, images: list[Tensor], boxes: list[Tensor]) -> list[Tensor]: ...


class Pass:
    """One detector's view of the current batch: its image outputs, its regions, and regions on any other boxes."""

    def __init__(
        self,
        detector: DetectorLike,
        images: Callable[[], ImageOutputs],
        regions: Callable[[], RegionOutputs],
    ) -> None:
        self.detector = detector
        self._images = images
        self._regions = regions

    @cached_property
    def images(self) -> ImageOutputs:
        """A teacher's are computed when first asked for: not every method does."""
        return self._images()

    @cached_property
    def regions(self) -> RegionOutputs:
        """The student's sampled regions; a teacher's are the **student's** boxes, computed when first asked for."""
        return self._regions()

    def __len__(self) -> int:
        """How many images the batch has."""
        return len(self.images.image_sizes)

    def regions_on(self, boxes: list[Tensor]) -> RegionOutputs:
        """The second stage on other boxes: per image (r, 4), in the pixels of the resized image."""
        return self.detector.region_pass(self.images, boxes)


@dataclass(frozen=True)
class Step:
    """All that a loss may look at in one training step."""

    task: TaskSpec
    batch: Batch
    student: Pass
    teacher: Pass | None  # None in the first task, and where no method needs one


@dataclass(frozen=True)
class TaskContext:
    """All that a method may look at around a task."""

    cfg: CfgNode  # of this task
    stream: TaskStream
    task: TaskSpec
    dataset: DetectionDataset  # the training set; only views of it may be trained on
    view: TaskView  # what the task may see, before any method added to it
    student: Any  # the detector that learns
    teacher: Any | None  # the detector as the previous task left it
    run_folder: Path
    task_folder: Path
    detect: Callable[[Any, Sequence[TrainImage], str], list[Detections]]  # (detector, images, what for)
    features: Callable[[Any, Sequence[TrainImage], str], list[Tensor]]  # (n, D) of each image's visible boxes
    # (images, background regions per image, at most so many latents) -> the same regions through teacher and student
    latent_pairs: Callable[[Sequence[TrainImage], int, int], LatentPairs]
    is_main: bool  # this process writes files; the others wait for it and read them


class Method:
    """One remedy against forgetting. Subclasses override what they need.

    Attributes:
        DEFAULTS: the configuration node ``METHOD.<NAME>``, each value with its source in a comment.
        needs_teacher: the engine keeps the previous task's detector beside the student.
        replaces: base losses that this method computes itself, by name.
        changes_first_task: the first task trains differently with this method, so it cannot share one.
        from_scratch: every task starts from the initial weights (joint training).
        works_on: the problems this method is defined for.
        combines: False where the method stands alone.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    needs_teacher: ClassVar[bool] = False
    replaces: ClassVar[tuple[str, ...]] = ()
    changes_first_task: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False
    works_on: ClassVar[tuple[str, ...]] = ("detection",)
    combines: ClassVar[bool] = True

    def __init__(self, node: CfgNode) -> None:
        self.cfg = node

    def task_config(self, cfgs: Sequence[CfgNode]) -> CfgNode:
        """The configuration of the last task in ``cfgs`` (one per task so far), for a schedule of the method's own."""
        return cfgs[-1]

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        """What the task trains on, given what it may see: add pseudo-labels, replayed images, ..."""
        return view

    def begin_task(self, context: TaskContext) -> None:
        """Called before the first step of a task, and again when a killed task resumes."""

    def end_task(self, context: TaskContext) -> None:
        """Called after the last step of a task, before it is tested."""

    def transform_batch(self, batch: Batch) -> Batch:
        """The batch that the student trains on."""
        return batch

    def losses(self, step: Step) -> dict[str, Tensor]:
        """New loss terms, or base losses under their own names; each is summed with weight one."""
        return {}

    def aligner(self, folder: Path) -> RegionReading | None:
        """What moves region features before the predictor, at prediction: (R, D) to (R, D).

        Args:
            folder: of the model's file, where ``end_task`` wrote (``TaskContext.task_folder``).
        """
        return None

    def read_out(self, folder: Path) -> RegionReading | None:
        """What reads region features in the predictor's place, at prediction: (R, D) to logits (R, K + 1)."""
        return None

    def update_transforms(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Act on the parameters after the optimiser step, by name."""

    def report(self) -> dict[str, Any]:
        """What belongs in the task's result beside its AP: JSON-able."""
        return {}
