"""``incdet add-classes``: a trained model and a folder of new labels in, the model that knows both out.

It is a run of two tasks whose first was learned before: the old model is put where the engine expects the first
task's. What the command adds is the data (``incdet.cli.new_data``) and an honest answer to what it cost the old
classes: real AP where a labelled test set is given, otherwise agreement with the old model, under a stamp.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from lightning_fabric import Fabric

from incdet.backends.base import Detector
from incdet.backends.models import MODEL_FILE, find_model
from incdet.cli.new_data import (
    NewData,
    data_name,
    load_new_data,
    load_old_test,
    save_set,
    set_name,
    with_stand_ins,
    write_once,
)
from incdet.config import CfgNode, config_for_task
from incdet.engine import inference
from incdet.engine.launch import build_fabric
from incdet.engine.slots import load_predictor
from incdet.engine.stream import Run
from incdet.errors import ConfigError, MethodError
from incdet.files import write_atomic
from incdet.methods import build_methods
from incdet.methods.eli import FILE as ALIGNER_FILE
from incdet.report.html import write_report
from incdet.report.narrative import narrate
from incdet.report.runs import read_runs
from incdet.report.terminal import print_summary

EPILOG = """examples:
  incdet add-classes --model old/model.safetensors --data new_labels --out both
  incdet add-classes --model old --data new_labels --out both --old-test voc_2007_test   (what did it really cost?)
  incdet add-classes --model old --data new_labels --out both --classes fox owl --iterations 800 SOLVER.BASE_LR 0.005
"""
STAMP = "old_by_agreement"
# What the other options decide: an override would be lost, or would break what they say.
OWNED = ("OUTPUT_DIR", "TASKS", "DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.CLASSES", "DATASETS.HELD_OUT", "STAMPS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="OLD", help="a model file, a task or a run folder")
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="images labelled with the new classes: VOC or COCO layout"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="NEW", help="folder of the new model and its report")
    parser.add_argument(
        "--classes", nargs="+", default=[], metavar="NAME", help="the new classes (default: all labelled)"
    )
    parser.add_argument(
        "--old-test", metavar="NAME", help="data labelled with the old classes, to measure what it cost"
    )
    parser.add_argument("--method", default="pseudo_label", help="against forgetting (default: %(default)s)")
    parser.add_argument("--iterations", type=int, metavar="N", help="default: as the old model's configuration says")
    parser.add_argument("--resume", action="store_true", help="go on with what is in NEW")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration, last"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read both sides, learn the new classes, test before and after, and say what it cost."""
    out = arguments.out
    if not arguments.resume and out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty. Go on with what is there by --resume, or choose another folder.")
    file = find_model(arguments.model)
    detector, old, stored = load_predictor(file)
    cfg = configure(stored, arguments)
    new = load_new_data(data_name(arguments.data), cfg.DATASETS.ROOT, arguments.classes, old)
    added, train = ", ".join(new.classes[len(old) :]), out / "data" / "train.json"
    print(f"{file} knows {', '.join(old)}.")
    print(f"To learn: {added}, from {len(new.train)} images; {len(new.test)} more are kept to test on.")
    fabric = build_fabric(cfg.SOLVER.PRECISION)
    fabric.launch()
    save_set(train, new.train)
    for kept in _kept(file.parent, file.name):
        write_once(out / "task_1" / (MODEL_FILE if kept == file else kept.name), kept.read_bytes())
    cfg.merge_from_list(["DATASETS.TRAIN", (set_name(train, new.train),), *_task_keys(new)])
    cfg.merge_from_list(_test_keys(arguments, new, detector, cfg, fabric))

    stream_run = Run(cfg, fabric, resume=arguments.resume)
    if not (out / "task_1" / "result.json").exists():
        stream_run.evaluate(1)
    results = stream_run.learn()
    print_summary(results)
    for kept in _kept(out / "task_2", MODEL_FILE):
        write_atomic(out / kept.name, kept.read_bytes())
    page = out / "report.html"
    write_report([out], page, f"Adding {added}: what was learned, and what it cost")
    print()
    for sentence in narrate(read_runs([out])):
        print(textwrap.fill(sentence, 100))
    if results["matrix"]["voc_area_50"][0][0] is None:
        print("Nothing is known of what it forgot: no old object is in the images it was tested on. Give --old-test.")
    print(f"model: {out / MODEL_FILE}\nreport: {page}")


def _kept(folder: Path, model: str) -> list[Path]:
    """A model's file and what methods keep beside it."""
    return [path for path in (folder / model, folder / ALIGNER_FILE) if path.exists()]


def configure(stored: CfgNode, arguments: argparse.Namespace) -> CfgNode:
    """The old model's configuration as its next task would have had it, with what the command line changes.

    ``NEXT_TASKS`` is merged and emptied, so that an override of SOLVER means the only training there is.

    Raises:
        ConfigError: an override belongs to another option, or the iterations are none.
        MethodError: the method needs the old labels.
    """
    cfg = config_for_task(stored, 2)
    cfg.NEXT_TASKS = CfgNode(new_allowed=True)
    if arguments.iterations is not None:
        if arguments.iterations < 1:
            raise ConfigError(f"--iterations must be at least 1, got {arguments.iterations}.")
        steps = [step * arguments.iterations // cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS]
        cfg.merge_from_list(["SOLVER.STEPS", steps, "SOLVER.MAX_ITER", arguments.iterations])
    cfg.merge_from_list(["METHODS", [arguments.method], "MODEL.WEIGHTS", "", "NAME", "", "FIRST_TASK_CACHE", ""])
    owned = [key for key in arguments.opts[::2] if any(f"{key}.".startswith(f"{name}.") for name in OWNED)]
    if owned:
        raise ConfigError(
            f"{', '.join(owned)}: decided by --model, --data, --out, --classes and --old-test; leave it out."
        )
    cfg.merge_from_list(arguments.opts)
    cfg.merge_from_list(["OUTPUT_DIR", str(arguments.out), "DATASETS.CLASSES", [], "DATASETS.HELD_OUT", 0.0])
    for name, method in zip(cfg.METHODS, build_methods(cfg), strict=True):
        if method.from_scratch:
            raise MethodError(f"{name} trains on the labels of all classes, but the old ones are not labelled here.")
    return cfg


def _task_keys(new: NewData) -> list[object]:
    split = f"{new.num_old}+{len(new.classes) - new.num_old}"
    order = ["TASKS.ORDER", "listed", "TASKS.LISTED", new.classes]
    return ["TASKS.SPLIT", split, "TASKS.PROXY", "", *order, "TASKS.PROTOCOL", "class_split"]


def _test_keys(
    arguments: argparse.Namespace, new: NewData, detector: Detector, cfg: CfgNode, fabric: Fabric
) -> list[object]:
    """Write what both models are tested on; without ``--old-test`` the old model's word stands in for labels."""
    folder = arguments.out / "data"
    if arguments.old_test is not None:
        sets = {folder / "test.json": new.test}
        sets[folder / "old_test.json"] = load_old_test(data_name(arguments.old_test), cfg.DATASETS.ROOT, new)
        for file, data in sets.items():
            save_set(file, data)
        return ["DATASETS.TEST", tuple(set_name(*item) for item in sets.items()), "STAMPS", []]
    file = folder / "test_by_agreement.json"
    if not file.exists():  # on a GPU, detections need not repeat to the bit
        paths = [image.path for image in new.test.images]
        found = inference.detect(detector.to(fabric.device), paths, cfg, fabric, "stand-ins for old labels")
        save_set(file, with_stand_ins(new.test, found))
    return ["DATASETS.TEST", (set_name(file, new.test),), "STAMPS", [STAMP]]
