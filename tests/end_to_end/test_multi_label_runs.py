"""Images with several labels each are learned in two tasks by the same command, resumed, and reported on."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from comparison import differences

from incdet.cli import main
from incdet.data.records import ImageRecord
from incdet.data.voc import write_annotation
from incdet.engine import loop
from incdet.evaluation.results import read_run_results
from incdet.files import read_json

COLOURS = {"amber": (255, 160, 0), "blue": (0, 0, 255), "green": (0, 200, 0), "white": (255, 255, 255)}
QUADRANTS = ((0, 0), (8, 0), (0, 8), (8, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dark images of 16 by 16 pixels with one to three colours in their quarters; a class is a colour."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 60)):
        ids = [f"{split}_{number:03d}" for number in range(count)]
        for image_id in ids:
            write_image(root, image_id, rng)
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids))
    return root


def write_image(root: Path, image_id: str, rng: np.random.Generator) -> None:
    labels = rng.choice(len(COLOURS), rng.integers(1, 4), replace=False)
    corners = rng.permutation(QUADRANTS)[: len(labels)]
    pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
    for label, (x, y) in zip(labels, corners, strict=True):
        pixels[y : y + 8, x : x + 8] = [*COLOURS.values()][label][::-1]
    path = root / "JPEGImages" / f"{image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    absent = np.zeros(len(labels), bool)
    boxes = np.concatenate([corners, corners + 8], axis=1).astype(np.float32)
    write_annotation(root, ImageRecord(image_id, path, 16, 16, boxes, labels, absent, absent), [*COLOURS])


@pytest.fixture
def learn(data, tmp_path):
    def run(method: str, folder: str, *flags: str, iterations: int = 100, expect: int = 0) -> Path:
        config = tmp_path / f"{method}.yaml"
        config.write_text(
            "TASK: classification\n"
            "TASKS: {SPLIT: 2+2, PROTOCOL: latest_class}\n"
            f"DATASETS: {{TRAIN: 'voc:{data}:train', TEST: 'voc:{data}:test'}}\n"
            "INPUT: {MIN_SIZE_TRAIN: [8], MIN_SIZE_TEST: 8}\n"
            "MODEL: {BACKBONE: {NAME: mlp, WIDTH: 32, FREEZE_AT: 0}, CLASSIFIER: {MULTI_LABEL: true}}\n"
            f"SOLVER: {{BASE_LR: 0.05, IMS_PER_BATCH: 16, MAX_ITER: {iterations}, STEPS: [], WARMUP_ITERS: 0, "
            "CHECKPOINT_PERIOD: 10}\n"
            f"METHODS: [{method}]\n"
            "DATALOADER: {NUM_WORKERS: 0}\n"
            "FIRST_TASK_CACHE: ''\n"
        )
        out = tmp_path / folder
        assert main(["train", "--config-file", str(config), *flags, "OUTPUT_DIR", str(out)]) == expect
        return out

    return run


def test_all_labels_are_learned_from_those_of_the_tasks(learn):
    finetune, joint = learn("finetune", "finetune"), learn("joint", "joint")
    results = read_run_results(joint / "results.json")
    assert set(results["summary"]) == {"multi_label_ap"}
    assert results["summary"]["multi_label_ap"]["all"] > 0.95
    summary = read_run_results(finetune / "results.json")["summary"]["multi_label_ap"]
    assert summary["new"] > 0.95
    assert summary["old"] < results["summary"]["multi_label_ap"]["old"]
    first, second = read_json(finetune / "protocol.json", "the split")["tasks"]
    assert sum(first["hidden_future"].values()) == 0
    assert sum(second["hidden_old"].values()) > 0
    text = (finetune / "report.html").read_text()
    assert "A classifier that could name 2 kinds" in text
    assert "detector" not in text.partition("<table")[0]


def test_killed_and_resumed_to_the_bit(learn, monkeypatch):
    whole = learn("replay", "whole", iterations=30)
    calls = iter(range(1000))

    def check(losses, number):
        if next(calls) == 45:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_losses", check)
        folder = learn("replay", "run", iterations=30, expect=130)
    assert torch.load(folder / "task_2" / "state.pt", weights_only=True)["iteration"] == 10
    learn("replay", "run", "--resume", iterations=30)
    assert differences(whole, folder) == []
