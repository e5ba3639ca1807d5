"""Boxes with captions, drawn so that a person can read them."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Sequence

import cv2
import numpy as np

from incdet.errors import DataError

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the drawn image

# Twelve hues, twice: bright enough for dark text, and deep enough for white text.
PALETTE: tuple[Colour, ...] = tuple(
    tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue / 12, lightness, saturation))  # type: ignore[misc]
    for lightness, saturation in ((0.60, 0.95), (0.36, 0.85))
    for hue in range(12)
)
FONT = cv2.FONT_HERSHEY_SIMPLEX
CAPTION_PADDING = 3  # pixels around a caption's text
DASH = 8  # pixels drawn, then as many left out


def class_colours(names: Sequence[str]) -> list[Colour]:
    """One RGB colour per class name, distinct up to the size of the palette.

    A name's colour depends on itself and on the names before it only, so a class keeps its colour when later tasks
    append classes.
    """
    free = list(range(len(PALETTE)))
    colours: dict[str, Colour] = {}
    for name in names:
        if name in colours:
            continue
        if not free:
            free = list(range(len(PALETTE)))
        wanted = zlib.crc32(name.encode()) % len(PALETTE)
        # The nearest free entry after the wanted one; the palette is a ring.
        chosen = min(free, key=lambda entry: (entry - wanted) % len(PALETTE))
        free.remove(chosen)
        colours[name] = PALETTE[chosen]
    return [colours[name] for name in names]


def class_colour(name: str) -> Colour:
    """The RGB colour that belongs to a class name, the same on every machine."""
    return class_colours([name])[0]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: Sequence[str],
    colours: Sequence[Colour] | None = None,
    dashed: bool | Sequence[bool] = False,
    min_side: int = 480,
) -> np.ndarray:
    """A new image with the boxes and their captions drawn on it.

    Args:
        image: (h, w, 3) uint8 RGB; left as it is.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of ``image``.
        captions: n texts; an empty one draws the box alone.
        colours: n RGB colours; by default the colour of each caption's first word.
        dashed: one flag for all boxes or one per box.
        min_side: an image whose shorter side is below this is enlarged by a whole factor until it is not, so that
            captions stay legible (default: ours).

    Raises:
        DataError: the image, the boxes or the number of captions, colours or flags is wrong.
    """
    boxes = _checked_boxes(image, boxes)
    flags = [dashed] * len(boxes) if isinstance(dashed, bool) else list(dashed)
    if colours is None:
        colours = [class_colour((caption.split() or [""])[0]) for caption in captions]
    for what, values in (("captions", captions), ("colours", colours), ("dashed flags", flags)):
        if len(values) != len(boxes):
            raise DataError(f"draw_boxes: expected {len(boxes)} {what}, one per box, but {len(values)} came")

    factor = max(1, math.ceil(min_side / min(image.shape[:2])))
    canvas = image.copy()
    if factor > 1:
        canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    height, width = canvas.shape[:2]
    # Captions come last and keep off each other: a box must never cross out its neighbour's name.
    rectangles = [_pixels(box * factor, width, height) for box in boxes]
    thickness = max(2, round(min(height, width) / 250))
    for rectangle, colour, flag in zip(rectangles, colours, flags, strict=True):
        _draw_rectangle(canvas, rectangle, colour, thickness, flag)
    taken: list[Rectangle] = []
    for rectangle, caption, colour in zip(rectangles, captions, colours, strict=True):
        if caption:
            taken.append(_draw_caption(canvas, rectangle, caption, colour, taken))
    return canvas


def _checked_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"draw_boxes: expected a (h, w, 3) uint8 RGB image, but {image.dtype} {image.shape} came")
    boxes = np.asarray(boxes, dtype=np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(f"draw_boxes: expected finite (n, 4) boxes, but an array of shape {boxes.shape} came: {boxes}")
    return boxes


def _pixels(box: np.ndarray, width: int, height: int) -> Rectangle:
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    return (
        min(max(x1, 0), width - 1),
        min(max(y1, 0), height - 1),
        min(max(x2, 0), width - 1),
        min(max(y2, 0), height - 1),
    )


def _draw_rectangle(canvas: np.ndarray, rectangle: Rectangle, colour: Colour, thickness: int, dashed: bool) -> None:
    x1, y1, x2, y2 = rectangle
    if not dashed:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
        return
    for x in range(x1, x2, 2 * DASH):
        for y in (y1, y2):
            cv2.line(canvas, (x, y), (min(x + DASH, x2), y), colour, thickness, cv2.LINE_AA)
    for y in range(y1, y2, 2 * DASH):
        for x in (x1, x2):
            cv2.line(canvas, (x, y), (x, min(y + DASH, y2)), colour, thickness, cv2.LINE_AA)


def _draw_caption(
    canvas: np.ndarray, rectangle: Rectangle, caption: str, colour: Colour, taken: list[Rectangle]
) -> Rectangle:
    """Write the caption on a plate of the box's colour and return the place it took."""
    height, width = canvas.shape[:2]
    scale = max(0.5, min(height, width) / 900)
    stroke = 2 if scale > 0.7 else 1
    (text_width, text_height), baseline = cv2.getTextSize(caption, FONT, scale, stroke)
    plate_width, plate_height = text_width + 2 * CAPTION_PADDING, text_height + baseline + 2 * CAPTION_PADDING

    x1, y1, _, y2 = rectangle
    left = max(0, min(x1, width - plate_width))
    tops = [y1 - plate_height, y1, y2, y2 - plate_height, *range(y1 + plate_height, y2, plate_height)]
    places = [(left, top, left + plate_width, top + plate_height) for top in tops]
    inside = [place for place in places if place[1] >= 0 and place[3] <= height] or places[1:2]
    place = next((p for p in inside if not any(_overlap(p, other) for other in taken)), inside[0])

    cv2.rectangle(canvas, place[:2], place[2:], colour, cv2.FILLED)
    origin = (place[0] + CAPTION_PADDING, place[1] + CAPTION_PADDING + text_height)
    cv2.putText(canvas, caption, origin, FONT, scale, _text_colour(colour), stroke, cv2.LINE_AA)
    return place


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_colour(background: Colour) -> Colour:
    """Black or white, whichever stands out more (ITU-R BT.601 luma)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
