"""GPM on two processes takes the same steps as on one, with the same images in each step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from incdet.data.digits import bundled_digits, write_digits

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/classification/digits/5+5/gpm.yaml"


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    write_digits(bundled_digits(), tmp_path / "digits")
    one, two = (_learn(tmp_path, processes) for processes in (1, 2))
    learned = load_file(one / "task_1/model.safetensors")
    for task in (1, 2):
        torch.testing.assert_close(_memory(two, task), _memory(one, task), atol=1e-3, rtol=0)
        mine, theirs = (load_file(folder / f"task_{task}/model.safetensors") for folder in (one, two))
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4)
    assert (mine["backbone.body.fc1.0.weight"] - learned["backbone.body.fc1.0.weight"]).abs().max() > 1e-3


def _memory(run: Path, task: int) -> dict[str, torch.Tensor]:
    """The projection on each layer's memory; the directions themselves may have another sign."""
    bases = load_file(run / f"task_{task}/gradient_memory.safetensors")
    return {name: basis.transpose(1, 2) @ basis for name, basis in bases.items()}


def _learn(folder: Path, processes: int) -> Path:
    out = folder / f"run_{processes}"
    keys = ["DATASETS.ROOT", str(folder), "OUTPUT_DIR", str(out), "FIRST_TASK_CACHE", "", "SOLVER.MAX_ITER", "12"]
    words = [sys.executable, "tools/train_net.py", "--config-file", str(CONFIG), "--num-gpus", str(processes), *keys]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return out
