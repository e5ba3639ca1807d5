"""Detections of a whole set of images as flat arrays, and as a COCO results file that any detector can write.

The file is a list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}`` in pixels of the original image.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from incdet.data.records import DetectionDataset
from incdet.errors import DataError
from incdet.files import read_json, write_json
from incdet.structures import Detections

_ENTRY = '{"image_id": "000012", "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}'


@dataclass(frozen=True, eq=False)
class Predictions:
    """What was found in a set of images, as flat arrays over all n detections."""

    image_ids: tuple[str, ...]
    classes: tuple[str, ...]  # what a label means; may differ in order from the data's own list
    image_index: np.ndarray  # (n,) int64, position in image_ids
    boxes: np.ndarray  # (n, 4) float32 xyxy, continuous pixels of the original image
    scores: np.ndarray  # (n,) float32 in [0, 1]
    labels: np.ndarray  # (n,) int64, position in classes

    @classmethod
    def from_detections(cls, found: Iterable[tuple[str, Detections]], classes: Sequence[str]) -> Predictions:
        """Gathers a detector's output, image by image, keeping its order."""
        ids, detections = [], []
        for image_id, one in found:
            ids.append(image_id)
            detections.append(one.cpu())
        return cls(
            image_ids=tuple(ids),
            classes=tuple(classes),
            image_index=np.repeat(np.arange(len(ids)), [len(one) for one in detections]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes.numpy() for one in detections)]),
            scores=np.concatenate([np.zeros(0, np.float32), *(one.scores.numpy() for one in detections)]),
            labels=np.concatenate([np.zeros(0, np.int64), *(one.labels.numpy() for one in detections)]),
        )

    def positions_in(self, image_ids: Sequence[str], name: str) -> np.ndarray:
        """(n,) the position in ``image_ids`` of each detection's image; DataError where it is not among them."""
        position = {image_id: index for index, image_id in enumerate(image_ids)}
        detected = (self.image_ids[index] for index in np.unique(self.image_index))
        unknown = [image_id for image_id in detected if image_id not in position]
        if unknown:
            raise DataError(
                f"{len(unknown)} images with predictions are not in the data set '{name}', the first is '{unknown[0]}'"
                f"{_nearest(unknown[0], image_ids)}. Score on the set that was predicted"
            )
        lookup = np.array([position.get(image_id, -1) for image_id in self.image_ids], dtype=np.int64)
        return lookup[self.image_index]

    def __len__(self) -> int:
        return len(self.labels)


def scored_classes(dataset: DetectionDataset, classes: Sequence[str] | None) -> tuple[str, ...]:
    """``classes``, or all of the dataset's where None; DataError for a class that the dataset does not have."""
    names = dataset.classes if classes is None else tuple(classes)
    unknown = [name for name in names if name not in dataset.classes]
    if unknown:
        raise DataError(
            f"cannot score {', '.join(unknown)}: the data set '{dataset.name}' has no such class. "
            f"It has: {', '.join(dataset.classes)}. Name its classes, or score on the data that has them"
        )
    return names


def judged(predictions: Predictions, dataset: DetectionDataset) -> Predictions:
    """Without the detections of classes that nobody labelled in their image: they are neither right nor wrong."""
    unlabelled = {
        image.image_id: {dataset.classes[label] for label in image.unlabelled}
        for image in dataset.images
        if image.unlabelled
    }
    if not unlabelled:
        return predictions
    pairs = ((image_id, name) for image_id in predictions.image_ids for name in predictions.classes)
    unknown = np.array([name in unlabelled.get(image_id, ()) for image_id, name in pairs], dtype=bool)
    keep = ~unknown[predictions.image_index * len(predictions.classes) + predictions.labels]
    return replace(
        predictions,
        image_index=predictions.image_index[keep],
        boxes=predictions.boxes[keep],
        scores=predictions.scores[keep],
        labels=predictions.labels[keep],
    )


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Writes a COCO results file; ``category_id`` is 1 + the position in ``predictions.classes``.

    Image ids that are plain numbers ("139", not "000139") are written as numbers, as COCO's tools expect. Numbers
    keep all their digits, so that the file scores exactly as the arrays do.
    """
    corners = predictions.boxes.astype(np.float64)
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    scores = predictions.scores.astype(np.float64).tolist()
    ids: list[str | int] = [int(name) if _is_plain_number(name) else name for name in predictions.image_ids]
    rows = zip(predictions.image_index.tolist(), predictions.labels.tolist(), xywh, scores, strict=True)
    entries = [
        {"image_id": ids[image], "category_id": label + 1, "bbox": box, "score": score}
        for image, label, box, score in rows
    ]
    write_json(path, entries, indent=None)


def read_predictions(
    path: str | Path,
    dataset: DetectionDataset,
    classes: Sequence[str] | None = None,
    categories: Mapping[int, str] | None = None,
) -> Predictions:
    """Reads a COCO results file of any detector that was run on ``dataset``.

    ``category_id`` is 1 + the position in ``classes`` (default: the dataset's own order), unless ``categories`` says
    what each id means, as a COCO annotation file does (``coco_categories``). An ``image_id`` may be text or number.

    Raises DataError for entries that are incomplete, not finite, of an unknown image or category, or that have a
    negative side or a score outside [0, 1]; IncdetError for a file that cannot be read or is not whole JSON.
    """
    names = dataset.classes if classes is None else tuple(classes)
    meaning = {index + 1: name for index, name in enumerate(names)} if categories is None else dict(categories)
    entries = read_json(path, "predictions")
    if not isinstance(entries, list):
        raise DataError(f"{path} must be a JSON list of entries {_ENTRY}; it is a {type(entries).__name__}")
    xywh, scores = _numbers(entries, path)
    image_ids = tuple(image.image_id for image in dataset.images)
    return Predictions(
        image_ids=image_ids,
        classes=names,
        image_index=_image_index([entry["image_id"] for entry in entries], image_ids, dataset.name, path),
        boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32),
        scores=scores.astype(np.float32),
        labels=_labels([entry["category_id"] for entry in entries], meaning, names, path),
    )


def coco_categories(path: str | Path) -> dict[int, str]:
    """What each category id of a COCO annotation file means; DataError if it lists no categories."""
    content = read_json(path, "COCO annotations")
    try:
        return {category["id"]: category["name"] for category in content["categories"]}
    except (KeyError, TypeError) as error:
        raise DataError(f'{path} must hold "categories": [{{"id": 1, "name": "person"}}, ...]; got none') from error


def _numbers(entries: list[Any], path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) as x, y, width, height and scores (n,), checked."""
    wrong = next((index for index, entry in enumerate(entries) if not _is_complete(entry)), None)
    if wrong is not None:
        raise DataError(f"{path}: entry {wrong} must look like {_ENTRY}; got {str(entries[wrong])[:200]}")
    xywh = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    scores = np.array([entry["score"] for entry in entries], dtype=np.float64)
    _refuse(~np.all(np.isfinite(np.column_stack([xywh, scores])), axis=1), "finite numbers", entries, path)
    _refuse(np.any(xywh[:, 2:] < 0, axis=1), "a width and height of at least 0", entries, path)
    _refuse((scores < 0) | (scores > 1), "a score between 0 and 1", entries, path)
    return xywh, scores


def _is_complete(entry: Any) -> bool:
    """All four keys, a box of four numbers and a numeric score."""
    if not isinstance(entry, dict) or not {"image_id", "category_id", "bbox", "score"} <= entry.keys():
        return False
    box = entry["bbox"]
    return isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in [*box, entry["score"]])


def _refuse(wrong: np.ndarray, expected: str, entries: list[Any], path: str | Path) -> None:
    if wrong.any():
        index = int(np.argmax(wrong))
        raise DataError(f"{path}: {wrong.sum()} entries lack {expected}; the first is entry {index}: {entries[index]}")


def _image_index(ids: list[Any], image_ids: Sequence[str], name: str, path: str | Path) -> np.ndarray:
    position: dict[str | int, int] = {image_id: index for index, image_id in enumerate(image_ids)}
    position |= {int(image_id): index for index, image_id in enumerate(image_ids) if image_id.isdecimal()}
    try:
        return np.array([position[image_id] for image_id in ids], dtype=np.int64)
    except (KeyError, TypeError):
        index, unknown = next(
            (index, i) for index, i in enumerate(ids) if not isinstance(i, Hashable) or i not in position
        )
        _refuse_unknown(f"{path}: entry {index}: image_id", unknown, f"the data set '{name}'", image_ids)


def _labels(ids: list[Any], meaning: Mapping[int, str], names: Sequence[str], path: str | Path) -> np.ndarray:
    """Category ids as positions in ``names``."""
    label = {name: index for index, name in enumerate(names)}
    try:
        return np.array([label[meaning[category]] for category in ids], dtype=np.int64)
    except (KeyError, TypeError):
        known = {category: name for category, name in meaning.items() if name in label}
        index, unknown = next(
            (index, i) for index, i in enumerate(ids) if not isinstance(i, Hashable) or i not in known
        )
        shown = [f"{category} ({name})" for category, name in known.items()]
        _refuse_unknown(f"{path}: entry {index}: category_id", unknown, "the scored categories", shown)


def _refuse_unknown(where: str, value: Any, among: str, known: Sequence[str]) -> NoReturn:
    raise DataError(
        f"{where} {value!r} is not in {among}, which has {', '.join(known[:3])}, ... ({len(known)} in all)"
        f"{_nearest(str(value), known)}. Check that the file belongs to this data, split and class order"
    ) from None


def _nearest(text: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(text, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _is_plain_number(text: str) -> bool:
    return text.isdecimal() and text == str(int(text))
