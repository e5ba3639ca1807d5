"""Detectron2's users' two ways in, and a run of incdet's own on that backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparison import differences
from safetensors.torch import load_file

pytest.importorskip("detectron2", reason="detectron2 is not installed")

pytestmark = pytest.mark.detectron2
ROOT = Path(__file__).parents[2]
SEEN = 20


def run_example(name: str, datasets: Path, output: Path, *options: str) -> str:
    command = [sys.executable, f"examples/{name}.py", "--iterations", "4", "--output", str(output), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [*command, "--datasets", str(datasets)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def check_head(weights: dict[str, torch.Tensor]) -> None:
    """Stock keys alone, and one output for each class seen, with the background."""
    assert {name.split(".")[0] for name in weights} == {"backbone", "proposal_generator", "roi_heads"}
    assert len(weights["roi_heads.box_predictor.cls_score.weight"]) == SEEN + 1
    assert len(weights["roi_heads.box_predictor.bbox_pred.weight"]) == 4 * SEEN


def test_default_trainer(datasets, tmp_path):
    said = run_example("detectron2_default_trainer", datasets, tmp_path)
    for task, classes in ((1, 1), (2, 1), (2, 2)):
        assert f"after task {task}: AP " in said
        assert f"of task {classes}'s classes" in said
    first, second = (
        torch.load(tmp_path / f"task_{task}" / "model_final.pth", weights_only=True)["model"] for task in (1, 2)
    )
    check_head(second)
    assert first.keys() == second.keys()
    assert len(first["roi_heads.box_predictor.cls_score.weight"]) == SEEN // 2 + 1
    assert (tmp_path / "found.png").stat().st_size > 0


def test_own_loop(datasets, tmp_path):
    said = run_example("detectron2_own_loop", datasets, tmp_path, "--method", "faster_ilod")
    assert "faster_ilod, 10+10, class_split, in percent" in said
    first, second = (json.loads((tmp_path / f"task_{task}" / "metrics.json").read_text()) for task in (1, 2))
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"} <= first.keys()
    assert second.keys() - first.keys(), "the method's losses of the second task"
    check_head(load_file(tmp_path / "task_2" / "model.safetensors"))
    assert len(json.loads((tmp_path / "results.json").read_text())["tasks"]) == 2


def test_run_resumed_after_its_first_task_ends_with_the_same_weights(train):
    keys = {"BACKEND": "detectron2", "METHODS": ["pseudo_label"]}
    whole = train("whole", **keys)
    folder = train("run", "--task", "1", **keys)
    assert not (folder / "task_2").exists()
    train("run", "--resume", **keys)
    assert differences(whole, folder) == []
    check_head(load_file(folder / "task_2" / "model.safetensors"))
