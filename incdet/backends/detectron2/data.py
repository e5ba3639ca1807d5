"""A task's data in Detectron2's own loader: dataset dicts, a mapper that hides what may not be seen, and a sampler.

They serve views that a method has changed (pseudo-labels, replayed images) as well as the registered splits
(``incdet.backends.detectron2.splits``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.structures import Boxes, BoxMode
from detectron2.utils import comm
from torch.utils.data import Sampler

from incdet.data.loader import BatchPlan
from incdet.data.views import TaskView, TrainImage
from incdet.errors import ConfigError, DataError


def detection_dicts(view: TaskView) -> list[dict[str, Any]]:
    """A view in Detectron2's standard dataset format, one dict per image and in the view's order.

    Beyond the standard: an annotation has ``weight``, ``use_rpn`` and ``use_roi`` (``incdet.structures.Target``), an
    image has ``source`` (``task`` or ``memory``). ``iscrowd`` is 1 where neither stage uses a box: Detectron2 itself
    has no ignored boxes in training and leaves crowds out.
    """
    return [_image_dict(image) for image in view.images]


class TaskMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` that shows a task only the labels it may see, with incdet's fields.

    An annotation whose class is not in ``visible`` is dropped, whatever the dict holds; None hides nothing. An image
    from the memory is an exemplar of older tasks, which saw its labels: it keeps classes of these tasks as well, but
    none that comes after ``visible``. A view with pseudo-labels of old classes needs
    ``TaskMapper(cfg, visible=range(task.num_seen))``.

    In training the result has ``instances`` with ``gt_boxes``, ``gt_classes``, ``gt_weights`` (float32), ``gt_use_rpn``
    and ``gt_use_roi`` (bool). Boxes that neither stage uses stand apart in ``ignored_boxes`` (``Boxes``): a stock model
    reads ``gt_boxes`` and ``gt_classes`` alone and would learn them as objects. With ``is_train=False`` no annotation
    survives. The dict that comes in is never changed.
    """

    @configurable
    def __init__(self, is_train: bool, *, visible: range | None = None, **settings: Any) -> None:
        """Args are those of ``DatasetMapper`` and ``visible``, the labels that training may see.

        From a config, ``visible`` is what the metadata of ``DATASETS.TRAIN`` say (``visible_labels``), if anything.
        ConfigError where its data sets disagree.
        """
        super().__init__(is_train, **settings)
        self.visible = visible

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {**super().from_config(cfg, is_train), "visible": _visible_labels(cfg.DATASETS.TRAIN)}

    def _transform_annotations(self, dataset_dict: dict[str, Any], transforms: Any, image_shape: tuple) -> None:
        """Called in training alone, with a copy of the dict."""
        shown = [item for item in dataset_dict["annotations"] if self._may_see(item, dataset_dict.get("source"))]
        taught = [item for item in shown if _is_taught(item)]
        ignored = [item for item in shown if not _is_taught(item)]
        dataset_dict["ignored_boxes"] = _transform_boxes(ignored, transforms, image_shape)
        # The library drops empty boxes without saying which. Each goes through it with its position for a class.
        dataset_dict["annotations"] = [{**item, "category_id": position} for position, item in enumerate(taught)]
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        instances = dataset_dict["instances"]
        kept = [taught[position] for position in instances.gt_classes.tolist()]
        instances.gt_classes = torch.tensor([item["category_id"] for item in kept], dtype=torch.int64)
        instances.gt_weights = torch.tensor([item.get("weight", 1.0) for item in kept], dtype=torch.float32)
        instances.gt_use_rpn = torch.tensor([item.get("use_rpn", True) for item in kept], dtype=torch.bool)
        instances.gt_use_roi = torch.tensor([item.get("use_roi", True) for item in kept], dtype=torch.bool)

    def _may_see(self, annotation: dict[str, Any], source: str | None) -> bool:
        if self.visible is None:
            return True
        first = 0 if source == "memory" else self.visible.start
        return first <= annotation["category_id"] < self.visible.stop


class ReplaySampler(Sampler[int]):
    """An endless sampler whose every batch has the view's share of memory images (``TaskView.memory_share``).

    It draws what ``BatchPlan`` plans, so iteration i has the same images as in incdet's own engine with the same seed;
    augmentation stays Detectron2's, whose random numbers are its own. Use it with all of the view's dicts, in order::

        build_detection_train_loader(
            dataset=detection_dicts(view), sampler=ReplaySampler(view, 16, seed), mapper=mapper,
            total_batch_size=16, aspect_ratio_grouping=False,
        )

    With aspect-ratio grouping (Detectron2's default) tall and wide images wait in two queues until one fills a batch:
    the share then holds on average, not in every batch, and batch i is no longer that of iteration i.

    Args:
        view: what the task trains on.
        batch_size: images of a batch, over all processes.
        seed: ``SEED`` of the run.
        start: the first iteration, to resume at.

    Raises:
        DataError: the view has no image, or the processes cannot share the batch equally.
    """

    def __init__(self, view: TaskView, batch_size: int, seed: int, start: int = 0) -> None:
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()
        if not view.images:
            raise DataError(f"task {view.task.index} has no training image with a visible object.")
        if batch_size < 1 or batch_size % self.world_size:
            raise DataError(
                f"ReplaySampler: batch_size is {batch_size}, which {self.world_size} processes cannot share equally; "
                "take a positive multiple."
            )
        self.plan, self.start = BatchPlan(view, batch_size, seed), start

    def __iter__(self) -> Iterator[int]:
        for iteration in count(self.start):
            for index, _ in self.plan.batch(iteration)[self.rank :: self.world_size]:
                yield index


def _image_dict(image: TrainImage) -> dict[str, Any]:
    columns = (image.boxes, image.labels, image.weights, image.use_rpn, image.use_roi)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "file_name": str(image.record.path),
        "image_id": image.record.image_id,
        "height": image.record.height,
        "width": image.record.width,
        "source": image.source,
        "annotations": [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": label,
                "iscrowd": int(not (use_rpn or use_roi)),
                "weight": weight,
                "use_rpn": use_rpn,
                "use_roi": use_roi,
            }
            for box, label, weight, use_rpn, use_roi in rows
        ],
    }


def _is_taught(annotation: dict[str, Any]) -> bool:
    used = annotation.get("use_rpn", True) or annotation.get("use_roi", True)
    return used and not annotation.get("iscrowd", 0)


def _visible_labels(names: Sequence[str]) -> range | None:
    stated = {MetadataCatalog.get(name).get("visible_labels") for name in names}
    if len(stated) > 1:
        raise ConfigError(
            f"DATASETS.TRAIN: {', '.join(names)} are not of one task: they say different visible_labels. Train on "
            "data sets of the same task, or give TaskMapper(cfg, visible=...) yourself."
        )
    return stated.pop() if stated else None


def _transform_boxes(annotations: Sequence[dict[str, Any]], transforms: Any, image_shape: tuple) -> Boxes:
    """The annotations' boxes in the transformed image, without empty ones."""
    corners = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in annotations]
    moved = transforms.apply_box(np.array(corners, dtype=np.float64).reshape(-1, 4))
    boxes = Boxes(torch.as_tensor(moved, dtype=torch.float32))
    boxes.clip(image_shape)
    return boxes[boxes.nonempty()]
