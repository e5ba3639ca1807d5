"""Tiny datasets written as letters, one per object, so that a test can be worked by hand."""

from pathlib import Path

import numpy as np

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.tasks import build_stream

CLASSES = ("d", "c", "b", "a")  # the source's order is not the stream's
STREAM = build_stream("2+2", CLASSES)  # teaches a and b, then c and d


def make_dataset(*images: str) -> DetectionDataset:
    """One image per text: a letter per object, ``?`` after a difficult one, ``*`` after a crowd one.

    The n-th object of an image has the box (10 n, 0, 10 n + 8, 8).
    """
    records = []
    for number, text in enumerate(images):
        letters = [character for character in text if character not in "?*"]
        flags = [text[i + 1 : i + 2] for i, character in enumerate(text) if character not in "?*"]
        boxes = np.array([[10 * i, 0, 10 * i + 8, 8] for i in range(len(letters))], dtype=np.float32).reshape(-1, 4)
        labels = np.array([CLASSES.index(letter) for letter in letters], dtype=np.int64)
        difficult, crowd = (np.array([flag == sign for flag in flags], dtype=bool) for sign in "?*")
        records.append(ImageRecord(f"im{number}", Path(f"im{number}.jpg"), 100, 80, boxes, labels, difficult, crowd))
    return DetectionDataset("tiny", CLASSES, tuple(records))


def random_dataset(images: int = 200, seed: int = 0) -> DetectionDataset:
    """Up to four objects per image, a quarter of them difficult and a quarter crowd."""
    rng = np.random.default_rng(seed)
    objects = [letter + flag for letter in "abcd" for flag in ("", "", "?", "*")]
    return make_dataset(*("".join(rng.choice(objects, size)) for size in rng.integers(0, 5, images)))
