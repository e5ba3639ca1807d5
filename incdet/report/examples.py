"""Test images with their boxes: the truth, and what each run found before and after learning more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from incdet.data.catalog import load_dataset
from incdet.data.images import read_image
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.data.views import only_classes
from incdet.errors import DataError
from incdet.evaluation.predictions import Predictions, read_predictions
from incdet.report.draw import Colour, class_colours, draw_boxes
from incdet.report.runs import Run

# All ours.
MIN_SCORE = 0.5  # detections below are not drawn
MIN_IOU = 0.5  # a detection of the right class that overlaps less does not find the object
MAX_ROWS, MAX_PANELS = 6, 36
MAX_OBJECTS = 6  # images with more are hard to read at this size
MIN_SIDE, MAX_SIDE = 256, 400  # pixels
BYTES_BUDGET = 1_800_000  # of all JPEGs together
QUALITIES = (82, 65, 45, 25)
MISSED: Colour = (235, 235, 235)


@dataclass(frozen=True)
class Panel:
    """One drawn image and what is to be said of it."""

    jpeg: bytes
    note: str


@dataclass(frozen=True)
class Examples:
    """Rows are images; columns are the truth and then moments of runs."""

    columns: tuple[str, ...]
    image_ids: tuple[str, ...]
    panels: tuple[tuple[Panel, ...], ...]


@dataclass(frozen=True, eq=False)
class _Moment:
    """A run right after one of its tasks."""

    title: str
    learned: tuple[str, ...]
    predictions: Predictions

    def of_image(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, scores and labels that are sure enough to be drawn."""
        found = self.predictions
        chosen = (found.image_index == index) & (found.scores >= MIN_SCORE)
        return found.boxes[chosen], found.scores[chosen], found.labels[chosen]


def draw_examples(runs: Sequence[Run]) -> Examples:
    """Draw the same test images as every run saw them; the runs are of one split and one data set.

    Images are chosen by their labels alone, never by what was detected: each next one shows the most classes that
    were not shown yet.

    Raises:
        IncdetError: the test data are not where the config says, or there are no predictions to draw.
    """
    dataset = _test_data(runs[0])
    if runs[0].metrics[0] == "multi_label_ap":
        dataset = replace(dataset, images=tuple(_whole_image_labels(record) for record in dataset.images))
    moments = _moments(runs, dataset)
    if not moments:
        raise DataError("none of the runs kept a task_<t>/predictions.json")
    shown = _shown_images(runs[0], dataset, moments)
    names = list(dict.fromkeys(name for run in runs for name in run.classes))
    colours = dict(zip(names, class_colours(names), strict=True))
    drawn = []
    for index in shown:
        image, scale = _load(dataset.images[index])
        truth = _draw_truth(image, scale, dataset, index, colours)
        drawn.append([truth, *(_draw_found(image, scale, dataset, index, moment, colours) for moment in moments)])
    return Examples(
        columns=(_truth_title(runs[0]), *(moment.title for moment in moments)),
        image_ids=tuple(dataset.images[index].image_id for index in shown),
        panels=_encode(drawn),
    )


def _test_data(run: Run) -> DetectionDataset:
    data = run.config().get("DATASETS")
    # A run with held-out images is tested on a part of its training set.
    which = "TRAIN" if run.protocol.get("held_out") else "TEST"
    if not isinstance(data, dict) or not data.get(which):
        raise DataError(f"{run.folder / 'config.yaml'} names no DATASETS.{which}, so the test images cannot be found")
    names, root = data[which], str(data.get("ROOT") or "datasets")
    name = names if isinstance(names, str) else ",".join(names)
    if run.protocol.get("proxy_of"):
        # The source lists classes that the proxy does not know, and readers refuse an object of an unknown class.
        return only_classes(load_dataset(name, root, data.get("CLASSES")), run.classes)
    return load_dataset(name, root, run.classes)


def _whole_image_labels(record: ImageRecord) -> ImageRecord:
    """Each class of the image once, in a box that covers it, as a multi-label classifier finds them."""
    labels = np.unique(record.labels)
    unscored = record.difficult | record.crowd
    return replace(
        record,
        boxes=np.tile(np.array([[0, 0, record.width, record.height]], np.float32), (len(labels), 1)),
        labels=labels,
        difficult=np.array([unscored[record.labels == label].all() for label in labels], dtype=bool),
        crowd=np.zeros(len(labels), dtype=bool),
    )


def _truth_title(run: Run) -> str:
    by_agreement = "old_by_agreement" in run.stamps
    return "the truth; of old kinds, what the old detector found" if by_agreement else "the truth"


def _moments(runs: Sequence[Run], dataset: DetectionDataset) -> list[_Moment]:
    """One run: after each task. Several: after the first one's first task, then each at its end."""
    wanted = [(runs[0], task) for task in range(1, len(runs[0].tasks) + 1)]
    if len(runs) > 1:
        wanted = [(runs[0], 1), *((run, len(run.tasks)) for run in runs if len(run.tasks) > 1)]
    present = [(run, task) for run, task in wanted if run.predictions_path(task).is_file()]
    moments = []
    for run, task in tqdm(present, desc="predictions of the examples", leave=False):
        learned = tuple(name for names in run.task_classes[:task] for name in names)
        title = f"{run.title}, after task {task}"
        moments.append(_Moment(title, learned, read_predictions(run.predictions_path(task), dataset, run.classes)))
    return moments


def _shown_images(run: Run, dataset: DetectionDataset, moments: Sequence[_Moment]) -> list[int]:
    """Indices of the images to draw, in the order of the data."""
    classes = [{dataset.classes[label] for label in image.labels} for image in dataset.images]
    candidates = [i for i, names in enumerate(classes) if names and len(dataset.images[i].labels) <= MAX_OBJECTS]
    if run.protocol.get("held_out"):
        tested = set(np.concatenate([moment.predictions.image_index for moment in moments]).tolist())
        candidates = [index for index in candidates if index in tested]
    rows = max(2, min(MAX_ROWS, MAX_PANELS // (len(moments) + 1)))
    chosen: list[int] = []
    seen: set[str] = set()
    while candidates and len(chosen) < rows:
        best = max(candidates, key=lambda index: (len(classes[index] - seen), len(classes[index]), -index))
        candidates.remove(best)
        chosen.append(best)
        seen |= classes[best]
    return sorted(chosen)


def _load(record: ImageRecord) -> tuple[np.ndarray, float]:
    """The image as (h, w, 3) uint8 RGB, made small enough for a page, and the factor by which it was made smaller."""
    image = np.ascontiguousarray(read_image(Path(record.path)).permute(1, 2, 0).numpy())
    scale = min(1.0, MAX_SIDE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return image, scale


def _draw_truth(
    image: np.ndarray, scale: float, dataset: DetectionDataset, index: int, colours: dict[str, Colour]
) -> tuple[np.ndarray, str]:
    record = dataset.images[index]
    names = [dataset.classes[label] for label in record.labels]
    unscored = [bool(flag) for flag in record.difficult | record.crowd]
    captions = [f"{name} (not scored)" if flag else name for name, flag in zip(names, unscored, strict=True)]
    drawn = draw_boxes(image, record.boxes * scale, captions, [colours[name] for name in names], unscored, MIN_SIDE)
    return drawn, ", ".join(names)


def _draw_found(
    image: np.ndarray,
    scale: float,
    dataset: DetectionDataset,
    index: int,
    moment: _Moment,
    colours: dict[str, Colour],
) -> tuple[np.ndarray, str]:
    """Detections in their class's colour; objects of learned classes that were missed, dashed and grey."""
    record = dataset.images[index]
    boxes, scores, labels = moment.of_image(index)
    names = [moment.predictions.classes[label] for label in labels]
    truth = [dataset.classes[label] for label in record.labels]
    owner = match(boxes, scores, names, record.boxes, truth)
    counted = ~(record.difficult | record.crowd) & np.array([name in moment.learned for name in truth], dtype=bool)
    missed = [i for i in np.flatnonzero(counted) if i not in owner]
    found = int(counted.sum()) - len(missed)

    captions = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    captions += [f"missed: {truth[i]}" for i in missed]
    all_boxes = np.concatenate([boxes, record.boxes[missed]]) * scale
    shades = [colours[name] for name in names] + [MISSED] * len(missed)
    dashed = [False] * len(names) + [True] * len(missed)
    unlabelled = {dataset.classes[label] for label in record.unlabelled}
    wrong = sum(1 for name, one in zip(names, owner, strict=True) if one < 0 and name not in unlabelled)
    note = f"finds {found} of {int(counted.sum())}" + (f", {wrong} wrong" if wrong else "")
    return draw_boxes(image, all_boxes, captions, shades, dashed, MIN_SIDE), note


def match(
    boxes: np.ndarray, scores: np.ndarray, names: Sequence[str], truth_boxes: np.ndarray, truth: Sequence[str]
) -> list[int]:
    """For each of n detections the object that it finds, or -1: best score first, same class, each object once.

    ``boxes`` is (n, 4), ``scores`` (n,) and ``truth_boxes`` (m, 4); ``names`` and ``truth`` are class names.
    """
    owner = [-1] * len(names)
    if not len(names) or not len(truth):
        return owner
    overlap = box_iou(torch.from_numpy(boxes).float(), torch.from_numpy(truth_boxes).float()).numpy()
    for detection in np.argsort(-scores, kind="stable"):
        free = [i for i, name in enumerate(truth) if name == names[detection] and i not in owner]
        best = max(free, key=lambda i: overlap[detection, i], default=None)
        if best is not None and overlap[detection, best] >= MIN_IOU:
            owner[detection] = best
    return owner


def _encode(drawn: Sequence[Sequence[tuple[np.ndarray, str]]]) -> tuple[tuple[Panel, ...], ...]:
    """JPEGs of the best quality whose sum fits the page."""
    for quality in QUALITIES:
        panels = tuple(tuple(Panel(_jpeg(image, quality), note) for image, note in row) for row in drawn)
        if sum(len(panel.jpeg) for row in panels for panel in row) <= BYTES_BUDGET:
            break
    return panels


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
