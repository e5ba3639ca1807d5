"""Two processes on the CPU, launched by incdet itself and by torchrun, make one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from incdet.data.digits import bundled_digits, write_digits
from incdet.evaluation.results import read_run_results

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_make_one_run(config, tmp_path):
    folder = tmp_path / "run"
    keys = ["OUTPUT_DIR", str(folder), "METHODS", "['replay', 'pseudo_label', 'faster_ilod']"]
    words = ["tools/train_net.py", "--config-file", str(config)]
    own = _launch(sys.executable, *words, "--num-gpus", "2", "--task", "1", *keys)
    assert own.count("report: ") == 1, "each result is told once"
    first = (folder / "task_1" / "model.safetensors").read_bytes()

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert _launch(*torchrun, *words, "--resume", *keys).count("report: ") == 1
    results = read_run_results(folder / "results.json")
    assert [len(row) for row in results["matrix"]["voc_area_50"]] == [1, 2]
    assert results["tasks"][1]["evaluate"]["images"] == 16
    assert (folder / "task_1" / "model.safetensors").read_bytes() == first
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["task"], line["iteration"]) for line in lines] == [(1, i) for i in range(8)] + [
        (2, i) for i in range(6)
    ]

    before = _best_scores(folder / "task_2" / "predictions.json")
    _launch(sys.executable, *words, "--eval-only", *keys)
    # Not to the bit: sums are rounded otherwise in batches of another make-up.
    assert _best_scores(folder / "task_2" / "predictions.json") == pytest.approx(before, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "task"), [("ppi", 3), ("gem", 2)])
def test_a_bounded_step_is_the_same_on_two_processes(tmp_path, method, task):
    """PPI with two constraints; GEM with one, of which each process has as many stored images as the other."""
    write_digits(bundled_digits(), tmp_path / "digits")
    config = ROOT / f"configs/classification/digits/2x5/{method}_multi_head.yaml"
    models = []
    for processes in ("1", "2"):
        keys = ["DATASETS.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / processes), "FIRST_TASK_CACHE", ""]
        words = ["tools/train_net.py", "--config-file", str(config), "--num-gpus", processes, "--task", str(task)]
        _launch(sys.executable, *words, *keys, "SOLVER.MAX_ITER", "10")
        models.append(load_file(tmp_path / processes / f"task_{task}" / "model.safetensors"))
    one, two = models
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


def _best_scores(path: Path) -> dict[str, float]:
    """Per image; the file lists each image's detections best first."""
    return {entry["image_id"]: entry["score"] for entry in reversed(json.loads(path.read_text()))}


def _launch(*words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout
