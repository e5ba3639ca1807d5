"""The exemplar memory of a run: copies of some old images, with what was labelled in them at the time.

The folder holds ``images/`` and ``memory.json``. Each entry states which classes are labelled in its image: objects of
classes that came later are in it too, unlabelled (ABR calls this the foreground shift), and a method must know that.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from incdet.data.images import read_image
from incdet.data.views import TrainImage
from incdet.errors import DataError
from incdet.files import atomic_path, read_json, write_atomic, write_json

SCHEMA = 1
_ARRAYS = ("boxes", "labels", "weights", "use_rpn", "use_roi")


@dataclass(frozen=True)
class Exemplar:
    """A stored image and why it is there."""

    image: TrainImage  # source "memory"
    kept_for: int  # the class (stream label) it was chosen for
    rank: int  # 0 = chosen first for that class; shrinking a memory drops the highest ranks
    pixels: Tensor | None = None  # (3, h, w) in [0, 1], to be stored instead of the image's own


def memory_size(folder: Path) -> dict[str, int]:
    """Images and crops of objects stored, and the bytes of all that is there; zeros where there is no memory."""
    images, crops = list(folder.glob("images/*")), list(folder.glob("boxes/*.png"))
    lists = [*folder.glob("memory.json"), *folder.glob("boxes/*.json")]
    files = [*images, *crops, *lists, *folder.glob("*.safetensors")]
    return {"images": len(images), "crops": len(crops), "bytes": sum(file.stat().st_size for file in files)}


def save_memory(folder: Path, exemplars: Sequence[Exemplar]) -> None:
    """Write the memory: new images first, then the list in one step, then images that nobody refers to are removed."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for exemplar in exemplars:
        entries.append(_entry(exemplar, _store(exemplar, folder / "images")))
    write_json(folder / "memory.json", {"schema": SCHEMA, "exemplars": entries}, indent=None)
    wanted = {entry["file"] for entry in entries}
    for file in (folder / "images").iterdir():
        if file.name not in wanted:
            file.unlink()


def load_memory(folder: Path, dataset_images: Mapping[str, Any]) -> list[Exemplar]:
    """Read a memory back; an absent one is empty.

    Args:
        folder: the run's ``memory``.
        dataset_images: the training records by image id, kept beside each exemplar so that what is hidden in it can
            be measured. The pixels and the labels come from the memory.

    Raises:
        DataError: an entry or an image of the memory is missing.
    """
    path = folder / "memory.json"
    if not path.exists():
        return []
    content = read_json(path, "the exemplar memory")
    try:
        return [_exemplar(entry, folder, dataset_images) for entry in content["exemplars"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not an exemplar memory of this run ({error!r}); delete {folder} and run again."
        ) from error


def pixels_of(exemplar: Exemplar) -> Tensor:
    """An exemplar's pixels (3, h, w) in [0, 1]: its own where it has some, else its image's."""
    if exemplar.pixels is not None:
        return exemplar.pixels
    return read_image(exemplar.image.record.path).float().div_(255)


def stored_images(exemplars: Sequence[Exemplar]) -> list[TrainImage]:
    """Each image once, though it may be kept for several classes, with the labels of all tasks that kept it."""
    images: dict[str, TrainImage] = {}
    for image in (exemplar.image for exemplar in exemplars):
        image_id = image.record.image_id
        images[image_id] = _joined(images[image_id], image) if image_id in images else image
    return list(images.values())


def _store(exemplar: Exemplar, folder: Path) -> str:
    """Write an exemplar's image where it is not there yet; returns the file's name."""
    record = exemplar.image.record
    name = record.image_id.replace("/", "_")
    if exemplar.pixels is None:
        stored = folder / f"{name}{record.path.suffix}"
        if not stored.exists():
            with atomic_path(stored) as temporary:
                shutil.copyfile(record.path, temporary)
        return stored.name
    levels = (255 * exemplar.pixels.detach().clamp(0, 1)).round().byte()
    file = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(file, format="PNG")
    # Other pixels make another file: the one that the list on disk names stays until there is a new list.
    stored = folder / f"{name}.{hashlib.blake2b(file.getvalue(), digest_size=4).hexdigest()}.png"
    if not stored.exists():
        write_atomic(stored, file.getvalue())
    return stored.name


def _joined(image: TrainImage, other: TrainImage) -> TrainImage:
    """An image with the objects of another task's classes added."""
    added = ~np.isin(other.labels, list(image.labelled))
    rows: dict[str, Any] = {
        name: np.concatenate([getattr(image, name), getattr(other, name)[added]]) for name in _ARRAYS
    }
    return replace(image, labelled=image.labelled | other.labelled, **rows)


def _entry(exemplar: Exemplar, file: str) -> dict[str, Any]:
    image = exemplar.image
    return {
        "file": file,
        "image_id": image.record.image_id,
        "kept_for": exemplar.kept_for,
        "rank": exemplar.rank,
        "labelled": sorted(image.labelled),
        **{name: getattr(image, name).tolist() for name in _ARRAYS},
    }


def _exemplar(entry: Mapping[str, Any], folder: Path, dataset_images: Mapping[str, Any]) -> Exemplar:
    stored = folder / "images" / Path(entry["file"]).name
    if not stored.exists():
        raise DataError(f"the memory lists {stored}, which is gone; delete {folder} and run again.")
    image = TrainImage(
        record=replace(dataset_images[entry["image_id"]], path=stored),
        boxes=np.array(entry["boxes"], np.float32).reshape(-1, 4),
        labels=np.array(entry["labels"], np.int64),
        weights=np.array(entry["weights"], np.float32),
        use_rpn=np.array(entry["use_rpn"], bool),
        use_roi=np.array(entry["use_roi"], bool),
        labelled=frozenset(entry["labelled"]),
        source="memory",
    )
    return Exemplar(image, entry["kept_for"], entry["rank"])
