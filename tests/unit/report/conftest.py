"""Run folders as training writes them, with invented numbers."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from incdet.evaluation.results import METRICS, run_results, write_result

SCALE = dict(zip(METRICS, (1.0, 0.7, 0.97, 0.68, 0.6, 0.99, 0.66), strict=True))


def class_ap(name: str, mean: float) -> float:
    """A class's AP around the mean of its group; 0 stays 0."""
    wobble = 1 + 0.15 * np.sin(sum(name.encode()))
    return float(min(1.0, mean * wobble))


def write_run(
    folder: Path,
    methods=("pseudo_label",),
    name="",
    seed=0,
    matrix=((0.74,), (0.70, 0.88)),
    task_classes=(("circle", "cross"), ("ring", "star")),
    stamps=(),
    finished=None,
    extra=None,
    root=None,
    **protocol,
) -> Path:
    """Write one run folder; ``matrix`` is that of voc_area_50, ``finished`` the tasks done before a kill."""
    classes = [c for group in task_classes for c in group]
    block = {
        "split": "+".join(str(len(group)) for group in task_classes),
        "protocol": "class_split",
        "classes": classes,
        "class_order": "alphabetical",
        "class_order_hash": "abc123def456",
        "tasks": [list(group) for group in task_classes],
        "difficult": "keep",
        "train": {"name": "shapes_train", "fingerprint": "1" * 64},
        "test": {"name": "shapes_test", "fingerprint": "2" * 64},
        "held_out": False,
        "memory": {"images": 20, "bytes": 150_000},
        "seed": seed,
        "backend": "torchvision",
        "model": "resnet18-fpn",
        "commit": "0123456",
        "version": "0.1.0",
        "stamps": list(stamps),
    } | protocol
    tasks = []
    for t, row in enumerate(matrix[: finished or len(matrix)], start=1):
        ap = {
            metric: {
                c: class_ap(c, SCALE[metric] * m) for group, m in zip(task_classes[:t], row, strict=True) for c in group
            }
            for metric in METRICS
        }
        groups = {}
        for metric, values in ap.items():
            new = [values[c] for c in task_classes[t - 1]]
            old = [v for c, v in values.items() if c not in task_classes[t - 1]]
            mean = {"old": float(np.mean(old)) if old else None, "new": float(np.mean(new))}
            groups[metric] = mean | {"seen": float(np.mean([*old, *new]))}
        result = {
            "schema": 1,
            "task": t,
            "stamps": list(stamps),
            "protocol": block,
            "ap": ap,
            "groups": groups,
            "by_task": {m: [float(np.mean([ap[m][c] for c in g])) for g in task_classes[:t]] for m in METRICS},
            "train": {"iterations": 500, "seconds": 80.0 + seed, "images": 800},
            "evaluate": {"seconds": 9.2, "images": 400},
            "extra": (extra or {}) if t > 1 else {},
        }
        tasks.append(result)
        (folder / f"task_{t}").mkdir(parents=True)
        (folder / f"task_{t}" / "result.json").write_text(json.dumps(result))
    text = f"NAME: '{name}'\nMETHODS: {list(methods)}\nSEED: {seed}\n"
    (folder / "config.yaml").write_text(f"{text}DATASETS:\n  ROOT: {root}\n  TEST: shapes_test\n  TRAIN: shapes_test\n")
    rows = [
        {"task": t, "iteration": i, "loss": 2.0 * 0.99**i / t + 0.1, "loss_cls": 0.1}
        for t in range(1, len(tasks) + 1)
        for i in range(20, 501, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished is None:
        write_result(folder / "results.json", run_results(name or " + ".join(methods), methods, block, tasks))
    return folder


@pytest.fixture
def make_run(tmp_path):
    """``make_run("a", seed=1, ...)`` writes a run folder and returns its path."""
    return lambda folder, **options: write_run(tmp_path / folder, **options)


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """``run_tool("report", ...)`` runs tools/report.py and returns its exit code, output and errors."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(Path(__file__).parents[3] / "tools" / f"{name}.py"), run_name="__main__")
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return run


def write_voc_images(root: Path, classes, count=4, side=128) -> list[dict]:
    """``shapes_test`` in VOC layout: plain rectangles, two per image; returns what was drawn."""
    generator = np.random.default_rng(0)
    base = root / "shapes"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / part).mkdir(parents=True, exist_ok=True)
    truth = []
    for index in range(count):
        image_id = f"{index:06d}"
        image = cv2.GaussianBlur(generator.integers(150, 220, (side, side, 3), dtype=np.uint8), (0, 0), 3)
        objects = []
        for slot in range(2):
            name = classes[(index + slot * len(classes) // 2) % len(classes)]
            x, y = 10 + 60 * slot, int(generator.integers(10, 60))
            cv2.rectangle(image, (x, y), (x + 40, y + 45), generator.integers(0, 120, 3).tolist(), -1)
            objects.append((name, (x, y, x + 40, y + 45)))
        cv2.imwrite(str(base / "JPEGImages" / f"{image_id}.jpg"), image)
        (base / "Annotations" / f"{image_id}.xml").write_text(voc_annotation(image_id, side, objects))
        truth.append({"image_id": image_id, "objects": objects})
    (base / "ImageSets/Main/test.txt").write_text("".join(f"{one['image_id']}\n" for one in truth))
    return truth


def voc_annotation(image_id, side, objects) -> str:
    boxes = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
    return f"<annotation><filename>{image_id}.jpg</filename>{size}{boxes}</annotation>"


def write_predictions(folder: Path, task: int, classes, found) -> None:
    """``found``: (image_id, class name, (x1, y1, x2, y2), score) of each detection."""
    entries = [
        {"image_id": i, "category_id": classes.index(c) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for i, c, (x1, y1, x2, y2), score in found
    ]
    (folder / f"task_{task}" / "predictions.json").write_text(json.dumps(entries))
