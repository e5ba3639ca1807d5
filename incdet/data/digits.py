"""Handwritten digits: MNIST's files, or the small ones that scikit-learn brings, as tensors or as folders of images.

The permuted digits of continual learning are the same images several times over, each time with their pixels in another
order: as hard for a network without convolutions, and nothing of one order helps with another.
"""

from __future__ import annotations

import gzip
import math
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from incdet.errors import DataError
from incdet.files import explain_refusal
from incdet.randomness import derive_seed

HELD_OUT = 4  # every fourth of the bundled digits is a test image (ours)
_IMAGES, _LABELS = 0x803, 0x801  # what MNIST's files begin with


@dataclass(frozen=True)
class Digits:
    """Images (N, pixels) in [0, 1] and labels (N,), for training and for testing."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def side(self) -> int:
        """Height and width of the square images, in pixels."""
        return math.isqrt(self.train_images.shape[1])

    def task(self, index: int) -> Digits:
        """The five digits of task 0 or 1, labelled from 0."""
        train, test = (labels // 5 == index for labels in (self.train_labels, self.test_labels))
        return Digits(
            self.name,
            self.train_images[train],
            self.train_labels[train] - 5 * index,
            self.test_images[test],
            self.test_labels[test] - 5 * index,
        )

    def permuted(self, order: Tensor) -> Digits:
        """The same images with their pixels in another order (pixels,)."""
        return replace(self, train_images=self.train_images[:, order], test_images=self.test_images[:, order])


def bundled_digits() -> Digits:
    """The 1797 digits of 8 x 8 pixels that scikit-learn brings."""
    from sklearn.datasets import load_digits  # here, because it takes a second

    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()
    test = torch.arange(len(images)) % HELD_OUT == 0
    return Digits("scikit-learn digits", images[~test], labels[~test], images[test], labels[test])


def mnist_digits(folder: str | Path) -> Digits:
    """MNIST from its four files in ``folder``, as they are distributed or without ``.gz``.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    parts = []
    for part in ("train", "t10k"):
        images = _read_idx(Path(folder), f"{part}-images-idx3-ubyte", _IMAGES)
        labels = _read_idx(Path(folder), f"{part}-labels-idx1-ubyte", _LABELS)
        if len(images) != len(labels):
            raise DataError(
                f"{folder}: {len(images)} images but {len(labels)} labels in MNIST's {part} files. Copy both again."
            )
        parts += [images.flatten(1).float() / 255, labels.long()]
    return Digits("MNIST", *parts)


def _read_idx(folder: Path, name: str, magic: int) -> Tensor:
    """Unsigned bytes with their dimensions, big-endian, ahead of them."""
    paths = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not paths:
        raise DataError(f"{folder} has no {name} or {name}.gz. Give the folder with MNIST's four files (--mnist).")
    try:
        data = gzip.decompress(paths[0].read_bytes()) if paths[0].suffix == ".gz" else paths[0].read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{paths[0]} cannot be read: {error}. Copy it again.") from error
    ndim = magic & 0xFF
    shape = [int.from_bytes(data[4 * i : 4 * i + 4], "big") for i in range(1, ndim + 1)]
    start = 4 * (ndim + 1)
    if int.from_bytes(data[:4], "big") != magic or len(data) != start + math.prod(shape) or not math.prod(shape):
        raise DataError(
            f"{paths[0]}: expected bytes that begin with {magic:#010x} and {ndim} dimensions, got {len(data)} bytes "
            f"that begin with 0x{data[:4].hex()}. It is another file, or it was cut short: copy it again."
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)


def permutations(digits: Digits, count: int) -> Iterator[Digits]:
    """The digits in ``count`` orders of their pixels, their own first; the i-th depends on i alone.

    Kirkpatrick et al., PNAS 2017; its first task as in GPM's release, unpermuted.
    """
    yield digits
    for index in range(1, count):
        generator = torch.Generator().manual_seed(derive_seed("permuted digits", index))
        yield digits.permuted(torch.randperm(digits.side**2, generator=generator))


def write_digits(digits: Digits, folder: Path) -> None:
    """Writes ``<folder>/{train,test}/<digit>/<number>.png``, as ``incdet.data.folders`` reads them.

    Raises:
        IncdetError: the folder exists, or cannot be written.
    """
    with _new_folder(folder) as draft:
        _write_images(digits, draft)


def write_permuted_digits(digits: Digits, folder: Path, count: int) -> None:
    """Writes ``<folder>/{train,test}/p<permutation>_<digit>/<number>.png``; sorted, a permutation's are together.

    Args:
        digits: as they are.
        folder: a new one.
        count: of permutations, the digits' own order among them.

    Raises:
        IncdetError: the folder exists, or cannot be written.
    """
    width = len(str(count - 1))
    with _new_folder(folder) as draft:
        for index, permuted in enumerate(tqdm(permutations(digits, count), "permutations", count)):
            _write_images(permuted, draft, f"p{index:0{width}}_")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A draft that becomes the folder: it appears at once and complete, or not at all."""
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it, or choose another folder (--output).")
    with explain_refusal(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".digits-", dir=folder.parent) as workshop:
            draft = Path(workshop, "digits")
            yield draft
            draft.replace(folder)


def _write_images(digits: Digits, folder: Path, prefix: str = "") -> None:
    splits = {"train": (digits.train_images, digits.train_labels), "test": (digits.test_images, digits.test_labels)}
    for split, (images, labels) in splits.items():
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            pixels = (image.reshape(digits.side, digits.side) * 255).round().to(torch.uint8).numpy()
            path = folder / split / f"{prefix}{label}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
