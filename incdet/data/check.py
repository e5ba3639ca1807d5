"""All that is wrong with a data set, in one list, before a long run finds it one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from incdet.data.catalog import load_dataset
from incdet.data.defects import Defect, DefectError
from incdet.data.images import read_image
from incdet.data.records import ImageRecord

__all__ = ["Defect", "find_defects"]


def find_defects(name: str, root: str | Path = "datasets", classes: Sequence[str] | None = None) -> list[Defect]:
    """Reads every annotation and decodes every image of a data set; an empty list means that all is well.

    The arguments are those of ``load_dataset``.

    Raises:
        DataError: there is nothing to look at: the name is unknown or its folder is missing.
    """
    defects: list[Defect] = []
    dataset = load_dataset(name, root, classes, defects.append)
    # A file that does not exist is in the list already; reading it again would report it twice.
    records = [record for record in dataset.images if record.path.exists()]
    for record in tqdm(records, desc=f"decoding {dataset.name}"):
        defects += _image_defects(record)
    return defects


def _image_defects(record: ImageRecord) -> list[Defect]:
    try:
        height, width = read_image(record.path).shape[1:]
    except DefectError as error:
        return [error.defect]
    if (width, height) == (record.width, record.height):
        return []
    problem = f"the image is {width} x {height} pixels, its annotation says {record.width} x {record.height}"
    remedy = "Annotate the stored pixels: take back a resize or an EXIF rotation, or correct the annotated size"
    return [Defect(str(record.path), "size", problem, remedy)]
