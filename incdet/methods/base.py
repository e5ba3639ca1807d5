"""What a method is: one class with its configuration, in one file named after it.

Every hook has a default, and methods compose: ``METHODS: [replay, pseudo_label]`` runs the hooks of both, in that
order. To add one, write ``incdet/methods/<name>.py`` with one subclass of :class:`Method`; nothing else is edited
(docs/adding_a_method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
# A context in which a detector computes what one of its heads is to read.
Condition = Callable[[Any], AbstractContextManager[None]]
SLOTS = ("aligner", "read_out", "constraints")  # hooks that only one method of a run may have


class DetectorLike(Protocol):
    """The part of a backend's detector that methods may use (``backends.base.Detector`` has it)."""

    @property
    def num_classes(self) -> int: ...

    @property
    def multi_label(self) -> bool: ...

    @property
    def classifier(self) -> nn.Linear: ...

    @property
    def classifier_rows(self) -> list[int]: ...

    @property
    def box_head(self) -> nn.Module: ...

    def image_pass_like(self, outputs: ImageOutputs, share_frozen: bool = False) -> ImageOutputs: ...

    def region_pass(self, outputs: ImageOutputs, boxes: list[Tensor] | None = None) -> RegionOutputs: ...

    def box_features(self, pooled: Tensor) -> Tensor: ...

    def predictor(self, features: Tensor) -> tuple[Tensor, Tensor]: ...

    def losses(self, images: ImageOutputs, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]: ...

    def region_losses(self, regions: RegionOutputs, skip: Collection[str] = ()) -> dict[str, Tensor]: ...

    def region_features(self, images: list[Tensor], boxes: list[Tensor]) -> list[Tensor]: ...

    def drop_classes(self, count: int) -> None: ...

    def start_from_background(self, count: int) -> None: ...


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
    look: Callable[[Any], Pass]  # another detector's view of the batch, as the teacher's: for a second teacher


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
    # (detector, images, what for): the process's share of them, one image at a time, with targets and with gradients
    passes: Callable[[Any, Sequence[TrainImage], str], Iterator[Pass]]
    # (images, background regions per image, at most so many latents) -> the same regions through teacher and student
    latent_pairs: Callable[[Sequence[TrainImage], int, int], LatentPairs]
    # Train a detector on a view in a stage of its own, kept in task_<t>/<name>/: a second life finds it finished there,
    # or goes on with it. Takes (detector, view, name, values of SOLVER that differ, methods).
    train: Callable[[Any, TaskView, str, Mapping[str, Any], Sequence[Method]], None]
    average: Callable[[Tensor], Tensor]  # the mean over all processes
    is_main: bool  # this process writes files; the others wait for it and read them


class Method:
    """One remedy against forgetting. Subclasses override what they need.

    Attributes:
        DEFAULTS: the configuration node ``METHOD.<NAME>``, each value with its source in a comment.
        needs_teacher: the engine keeps the previous task's detector beside the student.
        replaces: base losses that this method computes itself, by name.
        changes_first_task: the first task's model is another with this method, so it cannot share one; what it
            replaces is replaced there too.
        from_scratch: every task starts from the initial weights (joint training).
        works_on: the problems this method is defined for: detection, classification (one label per image), multi_label.
        combines: False where the method stands alone.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    needs_teacher: ClassVar[bool] = False
    replaces: tuple[str, ...] = ()  # may depend on the configuration
    changes_first_task: bool = False  # may depend on the configuration
    from_scratch: ClassVar[bool] = False
    works_on: ClassVar[tuple[str, ...]] = ("detection",)
    combines: ClassVar[bool] = True

    def __init__(self, node: CfgNode) -> None:
        self.cfg = node

    def key(self, name: str) -> str:
        """Where a value of this method is set, for messages."""
        return f"METHOD.{type(self).__module__.rpartition('.')[2].upper()}.{name}"

    def check(self, cfg: CfgNode) -> None:
        """Called with the whole configuration before anything runs.

        Raises:
            ConfigError: the method cannot run with a value of another section.
        """

    @property
    def slots(self) -> tuple[str, ...]:
        """Those of the hooks in ``SLOTS`` that the method has; may depend on its configuration."""
        return tuple(hook for hook in SLOTS if getattr(type(self), hook) is not getattr(Method, hook))

    def task_config(self, cfgs: Sequence[CfgNode]) -> CfgNode:
        """The configuration of the last task in ``cfgs`` (one per task so far), for a schedule of the method's own."""
        return cfgs[-1]

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        """What the task trains on, given what it may see: add pseudo-labels, replayed images, ..."""
        return view

    def begin_task(self, context: TaskContext) -> None:
        """Called before the first step of a task, and again when a killed task resumes."""

    def refine(self, context: TaskContext) -> None:
        """Called after the last step, before the model is kept: what a method does to the student by itself."""

    def end_task(self, context: TaskContext) -> None:
        """Called when the task's model is kept, before it is tested; a second life may call it again."""

    def transform_batch(self, batch: Batch) -> Batch:
        """The batch that the student trains on."""
        return batch

    def relabel(self, images: ImageOutputs, regions: RegionOutputs) -> None:
        """Change in place what the base losses teach: labels of the student's sampled anchors and regions, weights.

        Called in every step of every task, between the region pass and the base losses. An anchor or a region whose
        label becomes ``IGNORED`` teaches nothing; nothing is sampled in its place.
        """

    def losses(self, step: Step) -> dict[str, Tensor]:
        """New loss terms, or base losses under their own names; each is summed with weight one."""
        return {}

    def constraints(self, step: Step) -> dict[str, Tensor]:
        """Losses that the step must not raise: they are logged, but not summed; ``project`` is given their gradients.

        At most one method of a run has them. The names, and how many there are, must be the same on every process: one
        whose images say nothing of a constraint gives a zero that hangs on the student.
        """
        return {}

    def project(self, gradient: Tensor, constraints: Tensor) -> Tensor:
        """The gradient that is applied in the place of the losses' own; called in steps with constraints only.

        Both are means over all processes, in float32, without the scale of mixed precision, and before clipping; all
        trained parameters of the student lie in them one after the other, with zeros where a loss does not reach.
        Momentum and weight decay come afterwards: what they add is not projected.

        Args:
            gradient: (P,) of the sum of all losses.
            constraints: (k, P) of each constraint, in the order that ``constraints`` gave.

        Returns:
            (P,).
        """
        return gradient

    def aligner(self, folder: Path) -> RegionReading | None:
        """What moves region features before the predictor, at prediction: (R, D) to (R, D).

        Args:
            folder: of the model's file, where ``end_task`` wrote (``TaskContext.task_folder``).
        """
        return None

    def read_out(self, folder: Path) -> RegionReading | None:
        """What reads region features in the predictor's place, at prediction: (R, D) to logits (R, K + 1)."""
        return None

    def conditions(self, folder: Path) -> Sequence[Condition] | None:
        """One per head of a classifier with a head per task: how its images are to be seen for that head."""
        return None

    def around_update(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        """Surrounds the optimiser step: see the trained parameters, by name, before it, and change them after it.

        What is projected here is the update itself, so neither momentum nor weight decay can leak past it.
        """
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step: tensors and plain values, kept in ``state.pt`` for a resumed task."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave; called after ``begin_task``."""

    def report(self) -> dict[str, Any]:
        """What belongs in the task's result beside its AP: JSON-able."""
        return {}
