"""The box memory of a run: crops of objects of the classes learned so far, and nothing else of their images.

A stored image holds objects that later tasks teach and that nobody labelled in it; a crop is its one object (Liu et
al., Augmented Box Replay, ICCV 2023). The run's ``memory/boxes`` holds the crops as PNG files and ``boxes.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from incdet.data.images import read_image
from incdet.data.views import TrainImage
from incdet.errors import DataError
from incdet.files import atomic_path, read_json, write_json

SCHEMA = 1
LIST = "boxes.json"


@dataclass(frozen=True)
class StoredBox:
    """A crop in the memory and why it is there."""

    file: str  # in the memory's folder
    label: int  # the class (stream label) of its object
    rank: int  # 0 = chosen first for that class; shrinking a memory drops the highest ranks


@dataclass(frozen=True)
class BoxPlace:
    """An object that may be stored: which of a task's images, and which of its visible boxes."""

    image: int
    box: int


def boxes_of(images: Sequence[TrainImage], label: int, smallest: float) -> list[BoxPlace]:
    """The usable objects of a class of which at least one side is longer than ``smallest`` pixels."""
    places = []
    for position, image in enumerate(images):
        longer = (image.boxes[:, 2:] - image.boxes[:, :2]).max(axis=1, initial=0) > smallest
        mine = (image.labels == label) & image.use_roi & longer
        places += [BoxPlace(position, int(row)) for row in np.flatnonzero(mine)]
    return places


def cut(image: TrainImage, row: int) -> Tensor:
    """The crop (3, h, w) uint8 of an image's object, on whole pixels and at least one of them."""
    pixels = read_image(image.record.path)
    height, width = pixels.shape[-2:]
    x1, y1, x2, y2 = (round(float(value)) for value in image.boxes[row])
    left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return pixels[:, top : max(y2, top + 1), left : max(x2, left + 1)]


def load_boxes(folder: Path) -> list[StoredBox]:
    """What a memory holds; an absent one is empty.

    Raises:
        DataError: its list is not whole, or a crop is gone.
    """
    path = folder / LIST
    if not path.exists():
        return []
    content = read_json(path, "the box memory")
    try:
        stored = [StoredBox(str(e["file"]), int(e["label"]), int(e["rank"])) for e in content["boxes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a box memory ({error!r}); delete {folder} and run again.") from error
    for box in stored:
        if not (folder / box.file).is_file():
            raise DataError(f"{path} lists {box.file}, which is gone; delete {folder} and run again.")
    return stored


def update_boxes(folder: Path, kept: Sequence[StoredBox], chosen: Mapping[int, Iterable[Tensor]]) -> list[StoredBox]:
    """Write new crops first, then the list in one step, then remove the crops that it does not name.

    Args:
        folder: of the memory.
        kept: what stays of it.
        chosen: for each new class its crops (3, h, w) uint8, best first.

    Returns:
        What the memory holds now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = list(kept)
    for label, crops in tqdm(chosen.items(), desc="boxes of classes", leave=False):
        for rank, crop in enumerate(crops):
            box = StoredBox(f"{label:04d}_{rank:05d}.png", label, rank)
            with atomic_path(folder / box.file) as temporary:
                Image.fromarray(crop.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
            stored.append(box)
    write_json(folder / LIST, {"schema": SCHEMA, "boxes": [asdict(box) for box in stored]}, indent=None)
    wanted = {box.file for box in stored}
    for file in folder.glob("*.png"):
        if file.name not in wanted:
            file.unlink()
    return stored
