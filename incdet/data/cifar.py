"""CIFAR-100's binary files (Krizhevsky 2009) as folders of images.

A record is 3,074 bytes: the coarse label, the fine label, and 32 x 32 pixels, first all red, then green, then blue. The
Python version of the set is pickles, which can run anything when they are opened, and is not read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from incdet.data.unpack import unpack
from incdet.errors import DataError
from incdet.files import explain_refusal

SIDE = 32
IMAGES = {"train": 50_000, "test": 10_000}
_BINARY, _PYTHON = "cifar-100-binary", "cifar-100-python"
_RECORD = 2 + 3 * SIDE * SIDE
_ARCHIVE = "Give cifar-100-binary.tar.gz as it is distributed, or the folder in it"


def write_cifar(source: str | Path, output: str | Path) -> int:
    """Writes ``<output>/{train,test}/<fine class>/<number>.png``, as ``incdet.data.folders`` reads them.

    Args:
        source: the archive, or the folder ``cifar-100-binary`` that was in it.
        output: a new folder; it is there when everything is in it.

    Returns:
        How many images were written.

    Raises:
        DataError: the output exists, or the source is missing, cut short, or of another version.
        IncdetError: the output cannot be written.
    """
    source, output = Path(source), Path(output)
    if output.exists():
        raise DataError(f"{output} exists already. Remove it, or choose another folder (--output).")
    with explain_refusal(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=output.parent) as workshop:
            folder = source if source.is_dir() else unpack(source, workshop, [_BINARY, _PYTHON])[0]
            names = _read_names(folder)
            splits = {split: read_records(folder, split, len(names)) for split in IMAGES}
            for split, (images, labels) in splits.items():
                _write_images(Path(workshop, "images", split), images, labels, names)
            Path(workshop, "images").rename(output)
    return sum(len(labels) for _, labels in splits.values())


def read_records(folder: Path, split: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 RGB and fine labels (N,) of a split.

    Raises:
        DataError: the file is missing or cut short, or a label is none of the classes.
    """
    path = folder / f"{split}.bin"
    data = np.frombuffer(_read(path), dtype=np.uint8)
    if len(data) != IMAGES[split] * _RECORD:
        raise DataError(
            f"{path}: expected {IMAGES[split]} records of {_RECORD} bytes, {IMAGES[split] * _RECORD} in all, got "
            f"{len(data)} bytes. It is another file, or it was cut short: download the archive again."
        )
    records = data.reshape(-1, _RECORD)
    labels = records[:, 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(
            f"{path}: record {int(labels.argmax())} has the fine label {labels.max()}, and fine_label_names.txt names "
            f"{classes} classes. {_ARCHIVE}."
        )
    return records[:, 2:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _read_names(folder: Path) -> list[str]:
    if (folder / "meta").is_file() or folder.name == _PYTHON:
        raise DataError(
            f"{folder} is CIFAR-100's Python version, whose files are pickles: opening them can run anything. "
            f"Download the binary version instead. {_ARCHIVE}."
        )
    names = _read(folder / "fine_label_names.txt").decode(errors="replace").split()
    if not names or len(set(names)) < len(names) or not all(name.replace("_", "").isalnum() for name in names):
        raise DataError(f"{folder / 'fine_label_names.txt'}: expected one class per line, each once. {_ARCHIVE}.")
    return names


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {_ARCHIVE}.") from error


def _write_images(folder: Path, images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
    pairs = zip(images, labels.tolist(), strict=True)
    for number, (image, label) in enumerate(tqdm(pairs, f"writing {folder.name}", len(images))):
        png = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))[1]
        (folder / names[label] / f"{number:05d}.png").write_bytes(png.tobytes())
