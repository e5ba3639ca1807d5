"""``incdet pretrain``: a backbone that has learned to classify, for a detector to start from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from incdet.cli.config import read_config, shipped_config
from incdet.config import CfgNode
from incdet.data.catalog import load_dataset
from incdet.data.crops import write_crops
from incdet.data.records import DetectionDataset
from incdet.data.views import first_task_alone
from incdet.engine.context import MODEL_FILE
from incdet.engine.launch import build_fabric
from incdet.engine.protocol import Problem
from incdet.engine.stream import Run
from incdet.errors import DataError
from incdet.report.terminal import print_summary

# What the classifier takes over from the detector, so that its backbone fits and sees the same pixels.
SHARED_KEYS = (
    "INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.WEIGHTS",
    "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.WIDTH", "MODEL.BACKBONE.STRIDE_IN_1X1",
)  # fmt: skip

EPILOG = """examples:
  what the first task may see:   incdet pretrain --detector configs/shapes/10+10/finetune.yaml --out output/backbone
  objects of another data set:   incdet pretrain --detector ... --crops coco_2017_train --out output/backbone
  a folder of classes:           incdet pretrain --detector ... --images data/birds --out output/backbone
  longer:                        incdet pretrain --detector ... --out output/backbone SOLVER.MAX_ITER 2000
then:                            incdet train --config-file ... MODEL.WEIGHTS output/backbone
The same command again goes on where it was stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", type=Path, required=True, metavar="FILE", help="the detector's configuration")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the crops and the backbone")
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--crops", metavar="DATA", help="cut out the objects of this set (default: what the first task may see)"
    )
    data.add_argument("--images", type=Path, metavar="FOLDER", help="one folder of images per class, in place of crops")
    parser.add_argument("--context", type=float, default=0.25, help="around an object, in its sizes (%(default)s)")
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="recipe (configs/_base_/pretrain.yaml)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of both, last")


def run(arguments: argparse.Namespace) -> None:
    out, detector = arguments.out, read_config(arguments.detector, arguments.opts)
    cfg = read_config(arguments.config_file or shipped_config("_base_/pretrain.yaml"), arguments.opts)
    images = arguments.images
    if images is None:
        images = out / "crops"
        count = write_crops(
            labelled_objects(detector, arguments.crops), images, cfg.INPUT.MIN_SIZE_TEST, arguments.context
        )
        print(f"{count} objects in {images}")
    cfg.merge_from_list([*classifier_values(detector), *data_values(images), "OUTPUT_DIR", str(out)])
    fabric = build_fabric(cfg.SOLVER.PRECISION)
    fabric.launch()
    print_summary(Run(cfg, fabric, resume=True).learn())
    print(
        f"\nstart from it: incdet train --config-file {arguments.detector} MODEL.WEIGHTS {out / 'task_1' / MODEL_FILE}"
    )


def labelled_objects(detector: CfgNode, name: str | None) -> DetectionDataset:
    """The data set ``name``, or what the detector's first task may see: its images, and labels of its classes alone."""
    if name is not None:
        return load_dataset(name, detector.DATASETS.ROOT)
    problem = Problem.load(detector)
    protocol, difficult = detector.TASKS.PROTOCOL, detector.DATASETS.DIFFICULT
    return first_task_alone(problem.train, problem.stream, protocol, difficult, detector.SEED)


def classifier_values(detector: CfgNode) -> list[object]:
    """``KEY, value, ...`` that make a classifier's backbone the detector's, with all of it trained."""
    # Frozen statistics are for weights that bring some; what is trained here brings them to the detector.
    norm = "none" if detector.MODEL.BACKBONE.NORM == "none" else "BN"
    values = {"MODEL.BACKBONE.NORM": norm, "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.BACKBONE.FREEZE_NORM": False}
    for key in SHARED_KEYS:
        node = detector
        for part in key.split("."):
            node = node[part]
        values[key] = node
    return [item for pair in values.items() for item in pair]


def data_values(folder: Path) -> Sequence[object]:
    """``KEY, value, ...`` that make a folder of classes one task, a held-out part of which is its test."""
    classes = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if len(classes) < 2:
        raise DataError(f"--images: expected one folder of images per class in {folder}, found {len(classes)}.")
    name = f"folders:{folder.parent}:{folder.name}"
    return "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "DATASETS.CLASSES", (), "TASKS.SPLIT", str(len(classes))
