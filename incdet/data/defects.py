"""What can be wrong with a data file, and the one way in which every reader says so.

A reader hands each defect to a ``report`` function. Loading passes :func:`refuse`, which raises at the first one;
``incdet.data.check`` passes a list's ``append`` and so learns of all of them from the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from incdet.errors import DataError

OVERHANG_PX = 1.0  # ours: published sets hold boxes that leave the image by a pixel of rounding; those are clipped


@dataclass(frozen=True)
class Defect:
    """One thing that makes a file unusable, and what to do about it."""

    file: str
    field: str  # the element, key or line inside the file; "" where the file as a whole is meant
    problem: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.field}" if self.field else self.file
        return f"{place}: {self.problem}. {self.remedy}."


class DefectError(DataError):
    """A ``DataError`` that still holds its defect, for whoever collects them."""

    def __init__(self, defect: Defect) -> None:
        super().__init__(str(defect))
        self.defect = defect


Report = Callable[[Defect], None]


def refuse(defect: Defect) -> NoReturn:
    """The report function of loading: the first defect ends it."""
    raise DefectError(defect)


def clip_box(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """The ``x1, y1, x2, y2`` box inside an image of ``width`` x ``height`` pixels.

    Raises:
        ValueError: the box is not finite, has no area, or leaves the image by more than ``OVERHANG_PX``. The message
            is the ``problem`` of a defect; the caller knows the file and the field.
    """
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{_show(box)} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{_show(box)} must have a positive width and height")
    if min(x1, y1) < -OVERHANG_PX or x2 > width + OVERHANG_PX or y2 > height + OVERHANG_PX:
        raise ValueError(f"{_show(box)} leaves the image, which is {width} x {height} pixels")
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{_show(box)} lies outside the image, which is {width} x {height} pixels")
    return x1, y1, x2, y2


def _show(box: Sequence[float]) -> str:
    return f"the box x1, y1, x2, y2 = {', '.join(f'{value:g}' for value in box)}"
