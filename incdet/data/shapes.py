"""``shapes``: twenty drawn classes in VOC layout, so that the whole job runs anywhere within minutes.

Every image holds one to three objects of any classes, as photographs do: an object of yesterday's class stands
unlabelled beside one of today's. Colour, size and background say nothing of the class. Image ``i`` of a split is a
function of (seed, split, i) alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from incdet.data.outlines import OUTLINES
from incdet.data.records import ImageRecord
from incdet.data.voc import write_annotation
from incdet.errors import DataError

SHAPE_CLASSES = tuple(OUTLINES)
SPLITS = ("train", "test")
_SUPERSAMPLE = 4
_JPEG_QUALITY = 95

# All ours, chosen so that a small detector is neither finished nor lost after a thousand iterations.
_OBJECT_SIZE = (0.22, 0.5)  # long side over the image's side: 28 to 64 of 128 pixels
_MAX_TURN_DEGREES = 30.0
_MAX_STRETCH = 1.1
_MAX_OVERLAP = 0.15  # intersection over the smaller box
_MIN_CONTRAST = 100.0  # distance in RGB between an object and the background under it


def draw_image(seed: int, split: str, index: int, size: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one image of the set.

    Returns:
        The picture, ``(size, size, 3)`` uint8 RGB; tight boxes ``(n, 4)`` float32, of whole objects also where a later
        one lies on top; labels ``(n,)`` int64, indices into ``SHAPE_CLASSES``.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    canvas = _background(rng, size)
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    for _ in range(rng.integers(1, 4)):
        label = int(rng.integers(len(SHAPE_CLASSES)))
        placed = _place(rng, label, size, boxes)
        if placed is not None:
            coverage, box = placed
            _paint(rng, canvas, coverage)
            boxes.append(box)
            labels.append(label)
    canvas += rng.normal(0, rng.uniform(2, 8), canvas.shape)
    picture = canvas.round().clip(0, 255).astype(np.uint8)
    return picture, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64)


def write_shapes(folder: str | Path, seed: int = 1, train: int = 1600, test: int = 400, size: int = 128) -> None:
    """Draws the set into a new folder in VOC layout, with the splits ``train`` and ``test``.

    The folder appears at once and complete, or not at all.

    Raises:
        DataError: the folder is already there and not empty, or a number is out of range.
    """
    folder = Path(folder)
    if train < 1 or test < 1 or size < 32 or seed < 0:
        raise DataError(
            f"shapes: expected train >= 1, test >= 1, size >= 32 and seed >= 0, "
            f"got train={train}, test={test}, size={size}, seed={seed}. Mend the arguments."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"shapes: {folder} exists already. Remove it, or name another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".shapes-", dir=folder.parent) as workshop:
        draft = Path(workshop, "shapes")
        for split, count in zip(SPLITS, (train, test), strict=True):
            _write_split(draft, seed, split, count, size)
        draft.replace(folder)


def _write_split(root: Path, seed: int, split: str, count: int, size: int) -> None:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    image_ids = [f"{split}_{index:05d}" for index in range(count)]
    for index, image_id in enumerate(tqdm(image_ids, desc=f"drawing shapes {split}")):
        picture, boxes, labels = draw_image(seed, split, index, size)
        path = root / "JPEGImages" / f"{image_id}.jpg"
        encoded = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        path.write_bytes(encoded.tobytes())
        no = np.zeros(len(labels), dtype=bool)
        write_annotation(root, ImageRecord(image_id, path, size, size, boxes, labels, no, no), SHAPE_CLASSES)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in image_ids))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """``(size, size, 3)`` float32: a gradient under a soft texture, with lines and blobs that are no object."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    ramp = (0.5 + 0.7 * (x * np.cos(angle) + y * np.sin(angle)))[:, :, None]
    first, second = rng.uniform(20, 235, (2, 3))
    cells = int(rng.integers(4, 17))
    texture = rng.normal(0, rng.uniform(4, 18), (cells, cells, 3)).astype(np.float32)
    canvas = first * (1 - ramp) + second * ramp + cv2.resize(texture, (size, size), interpolation=cv2.INTER_CUBIC)
    canvas = canvas.clip(0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 4)):
        start, end = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(canvas, start, end, rng.uniform(20, 235, 3).tolist(), int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(rng.integers(0, 5)):
        radii = size * rng.uniform(0.02, 0.07) * rng.uniform(0.5, 1.2, 9)
        turns = np.linspace(0, 2 * np.pi, 9, endpoint=False)
        blob = rng.uniform(0, size, 2) + np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1)
        cv2.fillPoly(canvas, [blob.round().astype(np.int32)], rng.uniform(20, 235, 3).tolist(), cv2.LINE_AA)
    return canvas.astype(np.float32)


def _place(
    rng: np.random.Generator, label: int, size: int, taken: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Coverage ``(size, size)`` in 0..1 and box of an object where there is room for it, else None."""
    for _ in range(20):
        coverage, box = _rasterise(rng, label, size)
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in taken):
            return coverage, box
    return None


def _rasterise(rng: np.random.Generator, label: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    turn = np.radians(rng.uniform(-_MAX_TURN_DEGREES, _MAX_TURN_DEGREES))
    stretch = rng.uniform(1 / _MAX_STRETCH, _MAX_STRETCH)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    contours = [contour * (stretch, 1) @ rotation for contour in OUTLINES[SHAPE_CLASSES[label]]()]
    points = np.concatenate(contours)
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    side = size * _SUPERSAMPLE
    scale = side * rng.uniform(*_OBJECT_SIZE) / extent.max()
    corner = rng.uniform(1, side - 1 - extent * scale)
    fine = np.zeros((side, side), dtype=np.uint8)
    cv2.fillPoly(fine, [((contour - low) * scale + corner).round().astype(np.int32) for contour in contours], 255)
    columns, rows = np.flatnonzero(fine.any(axis=0)), np.flatnonzero(fine.any(axis=1))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / _SUPERSAMPLE
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA) / np.float32(255), box


def _paint(rng: np.random.Generator, canvas: np.ndarray, coverage: np.ndarray) -> None:
    """Lays an object of a colour that stands out, lighter to one side, over the canvas."""
    under = (canvas * coverage[:, :, None]).sum(axis=(0, 1)) / coverage.sum()
    colour = rng.uniform(10, 245, 3)
    while np.linalg.norm(colour - under) < _MIN_CONTRAST:
        colour = rng.uniform(10, 245, 3)
    left, right = rng.uniform(-25, 25, 2)
    shade = np.linspace(left, right, len(canvas), dtype=np.float32)
    canvas += coverage[:, :, None] * (colour + shade[None, :, None] - canvas)


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over the smaller of two boxes."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    smaller = min((box[2:] - box[:2]).prod(), (other[2:] - other[:2]).prod())
    return float(sides.clip(0).prod() / smaller)
