"""``incdet predict``: the objects in any images, drawn on them and as COCO files.

``OUT/drawn/`` holds a copy of every image with its boxes. ``OUT/predictions.json`` is a COCO results file, as every
predictions file of incdet is; an image's id is its path below the folder that was given. ``OUT/categories.json`` is a
COCO file without annotations: it says what the categories are called, and names the images, also those in which
nothing was found.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from incdet.backends.base import Detector
from incdet.backends.models import find_model
from incdet.config import CfgNode
from incdet.data.images import read_image
from incdet.engine.launch import build_fabric
from incdet.engine.slots import load_predictor
from incdet.errors import ConfigError, DataError
from incdet.evaluation.predictions import Predictions, write_predictions
from incdet.files import write_atomic, write_json
from incdet.report.draw import class_colours, draw_boxes
from incdet.structures import Detections

EPILOG = """examples:
  a folder:         incdet predict --model output/demo/pseudo_label --images photos --out found
  surer ones only:  incdet predict --model model.safetensors --images a.jpg b.jpg --out found --score 0.8
"""
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of the images looked for in folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a model.safetensors, a task's or a run's folder")
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="PATH", help="images and folders")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for drawn/ and predictions.json")
    parser.add_argument("--score", type=float, default=0.5, help="leave out what scores less (default: %(default)s)")
    parser.add_argument("--recursive", action="store_true", help="look into the folders inside the folders too")


def run(arguments: argparse.Namespace) -> int:
    """Detect, draw, write, and count.

    Returns:
        1 when an image could not be read, else 0.
    """
    if not 0 <= arguments.score <= 1:
        raise ConfigError(f"--score must lie between 0 and 1, got {arguments.score:g}.")
    paths = find_images(arguments.images, arguments.recursive, arguments.out)
    detector, classes, cfg = load_predictor(find_model(arguments.model))
    fabric = build_fabric(cfg.SOLVER.PRECISION)
    fabric.launch()
    detector.to(fabric.device)
    outcome = _Outcome(classes, arguments.out, common_root(arguments.images))
    unreadable: list[str] = []
    for path, image, detections in _detect(detector, paths, cfg, fabric, unreadable):
        outcome.add(path, image, detections.above(arguments.score))
    outcome.write()
    print(f"{outcome.summary()}\n{len(outcome.images)} images read; drawn images and boxes: {arguments.out}")
    if unreadable:
        problems = "\n".join(f"  {problem}" for problem in unreadable)
        print(f"not read and left out: {len(unreadable)}\n{problems}", file=sys.stderr)
    return 1 if unreadable else 0


def find_images(given: Sequence[Path], recursive: bool, out: Path) -> list[Path]:
    """The images among ``given``, each once: files as they are, folders by the suffixes of their files.

    Nothing below ``out`` is taken, so that a second run does not detect objects in what the first one drew.

    Raises:
        DataError: a path does not exist, or there is no image.
    """
    missing = [str(path) for path in given if not path.exists()]
    if missing:
        raise DataError(f"--images: {', '.join(missing)} does not exist. Give images, or folders that hold images.")
    found: list[Path] = []
    for path in given:
        files = sorted(path.rglob("*") if recursive else path.iterdir()) if path.is_dir() else []
        found += [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
        found += [path] if path.is_file() else []
    written = out.resolve()
    images: dict[Path, Path] = {}
    for path in found:
        images.setdefault(path.resolve(), path)
    chosen = [path for file, path in images.items() if written not in file.parents]
    if not chosen:
        raise DataError(
            f"--images: no image in {', '.join(map(str, given))} (looked for {', '.join(SUFFIXES)}). Give other "
            "folders, or --recursive to look into the folders inside them."
        )
    return chosen


def common_root(given: Sequence[Path]) -> Path:
    """The folder that image ids start from: the one that was given, or the nearest that holds all that were."""
    folders = [path if path.is_dir() else path.parent for path in given]
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


class _Outcome:
    """What was found so far; images are drawn as they come, so that their pixels need not be kept."""

    def __init__(self, classes: Sequence[str], out: Path, root: Path) -> None:
        self.classes = tuple(classes)
        self.colours = class_colours(classes)
        self.out, self.root = out, root
        self.images: list[dict[str, Any]] = []
        self.found: list[tuple[str, Detections]] = []

    def add(self, path: Path, image: np.ndarray, detections: Detections) -> None:
        """Draw one image (h, w, 3) RGB and keep what was found in it."""
        name = path.resolve().relative_to(self.root).as_posix()
        height, width = image.shape[:2]
        self.images.append({"id": name, "file_name": name, "width": width, "height": height})
        self.found.append((name, detections))
        target = self.out / "drawn" / name
        if target.suffix.lower() not in SUFFIXES:
            target = target.with_name(f"{target.name}.png")
        labels, scores = detections.labels.tolist(), detections.scores.tolist()
        captions = [f"{self.classes[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        drawn = draw_boxes(image, detections.boxes.numpy(), captions, [self.colours[label] for label in labels])
        write_atomic(target, cv2.imencode(target.suffix, cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1].tobytes())

    def write(self) -> None:
        """The two JSON files."""
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(self.classes)]
        write_predictions(self.out / "predictions.json", Predictions.from_detections(self.found, self.classes))
        content = {"images": self.images, "annotations": [], "categories": categories}
        write_json(self.out / "categories.json", content)

    def summary(self) -> str:
        """Objects, and images with at least one, of each class."""
        labels = [detections.labels.tolist() for _, detections in self.found]
        rows = [
            (name, sum(one.count(label) for one in labels), sum(label in one for one in labels))
            for label, name in enumerate(self.classes)
        ]
        rows.append(("all", sum(map(len, labels)), sum(map(bool, labels))))
        width = max(len(name) for name, _, _ in [*rows, ("class", 0, 0)])
        lines = [f"{name:{width}}{objects:>10}{images:>10}" for name, objects, images in rows]
        return "\n".join([f"{'class':{width}}{'objects':>10}{'images':>10}", *lines])


class _Readable(Dataset):
    """Images as they are stored, (3, h, w) uint8, or what is wrong with the file."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, Tensor | str]:
        path = self.paths[index]
        try:
            return path, read_image(path)
        except DataError as error:
            return path, str(error)


def _detect(
    detector: Detector, paths: Sequence[Path], cfg: CfgNode, fabric: Fabric, unreadable: list[str]
) -> Iterator[tuple[Path, np.ndarray, Detections]]:
    """(path, pixels (h, w, 3), detections) of each whole image; the others' defects go to ``unreadable``."""
    loader: DataLoader = DataLoader(
        _Readable(paths),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )
    with tqdm(total=len(paths), desc="detect", unit="image") as progress:
        for items in loader:
            unreadable += [image for _, image in items if isinstance(image, str)]
            whole = [(path, image) for path, image in items if not isinstance(image, str)]
            if whole:
                found = detector.predict([image.to(fabric.device).float().div_(255) for _, image in whole])
                for (path, image), detections in zip(whole, found, strict=True):
                    yield path, np.ascontiguousarray(image.permute(1, 2, 0).numpy()), detections.cpu()
            progress.update(len(items))
