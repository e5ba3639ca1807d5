"""Ten runs killed at random moments: does `--resume` end with the weights, predictions and metrics of an unbroken run?

Five runs of fine-tuning and five of pseudo-labels with replay, on a miniature of `shapes`. Each is killed by SIGKILL at
a moment drawn from the whole length of its unbroken twin, then resumed, then compared with it file by file.

    python benchmarks/kill_resume.py [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from incdet.data.shapes import write_shapes

ROOT = Path(__file__).parents[1]
KILLS = 5  # of each
METHODS = (("finetune",), ("replay", "pseudo_label"))
CONFIG: dict[str, Any] = {
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MAX_SIZE_TRAIN": 64, "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 64},
    "MODEL": {
        "BACKBONE": {"NAME": "resnet18", "NORM": "BN", "WIDTH": 16, "FREEZE_AT": 0},
        "FPN": {"IN_FEATURES": ["res3", "res4"], "OUT_CHANNELS": 16},
        "ANCHOR_GENERATOR": {"SIZES": [[16], [24], [36]]},
        "ROI_BOX_HEAD": {"FC_DIM": 32},
    },
    "SOLVER": {"IMS_PER_BATCH": 4, "MAX_ITER": 40, "STEPS": [30], "WARMUP_ITERS": 5, "CHECKPOINT_PERIOD": 7},
    "NEXT_TASKS": {"MODEL": {"BACKBONE": {"FREEZE_AT": 2, "FREEZE_NORM": True}}},
    # A detector of forty iterations is sure of little: without these there would be few pseudo-labels.
    "METHOD": {"PSEUDO_LABEL": {"SCORE_IGNORE": 0.05, "SCORE_RPN": 0.06, "SCORE_ROI": 0.08}},
    "DATALOADER": {"NUM_WORKERS": 0},
    "LOG_PERIOD": 1,
    "FIRST_TASK_CACHE": "",
}
# What may differ between two lives of one run: the clock, and the state of the checkout while the benchmark runs.
FREE = ("seconds", "img_per_s", "commit")


class Runner:
    """Starts `incdet train` on one configuration in a process of its own."""

    def __init__(self, workshop: Path, methods: tuple[str, ...]) -> None:
        self.workshop, self.methods = workshop, methods
        self.config = workshop / f"{'+'.join(methods)}.yaml"
        self.config.write_text(
            yaml.safe_dump(CONFIG | {"METHODS": list(methods), "DATASETS": {"ROOT": str(workshop / "datasets")}})
        )

    def start(self, folder: Path, *flags: str) -> subprocess.Popen[bytes]:
        """Returns once the run has taken hold of its folder."""
        words = [sys.executable, "tools/train_net.py", "--config-file", str(self.config), *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*words, "OUTPUT_DIR", str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (folder / "config.yaml").exists():
            time.sleep(0.01)
        return process

    def finish(self, folder: Path, *flags: str) -> float:
        """Run to the end; the seconds since it took hold of its folder."""
        process = self.start(folder, *flags)
        began = time.perf_counter()
        if process.wait() != 0:
            raise RuntimeError(f"the run in {folder} failed with status {process.returncode}")
        return time.perf_counter() - began

    def kill(self, folder: Path, moments: random.Random, length: float) -> float:
        """Kill a run within ``length`` seconds after it took hold of its folder; returns the moment."""
        while True:
            moment = moments.uniform(0, length)
            process = self.start(folder)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                return moment
            shutil.rmtree(folder)  # a machine less busy than before had finished it: draw again


def reached(folder: Path) -> str:
    """How far a killed run had come."""
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    done = sorted(path.parent.name for path in folder.glob("task_*/result.json"))
    state = ", state kept" if list(folder.glob("task_*/state.pt")) else ""
    return f"{len(lines):3} iterations, {len(done)} tasks tested{state}"


def differences(folder: Path, other: Path) -> list[str]:
    """The files that differ in anything but times; pages and TensorBoard's events are made of the others."""
    made = {"report.html", "config.yaml"}
    names = {
        path.relative_to(root)
        for root in (folder, other)
        for path in root.rglob("*")
        if path.is_file() and path.name not in made and path.parent.name != "tensorboard"
    }
    return sorted(str(name) for name in names if _content(folder / name) != _content(other / name))


def _content(path: Path) -> Any:
    if not path.exists():
        return None
    if path.suffix == ".safetensors":
        return {
            name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in load_file(path).items()
        }
    if path.suffix in (".json", ".jsonl"):
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [json.loads(text, object_hook=_comparable) for text in texts]
    return path.read_bytes()


def _comparable(pairs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pairs.items() if key not in FREE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="of the moments (default: another one each time)")
    moments = random.Random(parser.parse_args().seed)
    identical = total = 0
    with tempfile.TemporaryDirectory() as name:
        workshop = Path(name)
        write_shapes(workshop / "datasets" / "shapes", train=48, test=16, size=64)
        print(f"{'methods':22}{'killed after':>13}  {'what there was':44}resumed")
        for methods in METHODS:
            runner = Runner(workshop, methods)
            label = " + ".join(methods)
            length = runner.finish(workshop / label)
            for number in range(KILLS):
                folder = workshop / f"{label} {number}"
                moment = runner.kill(folder, moments, length)
                found = reached(folder)
                runner.finish(folder, "--resume")
                differing = differences(workshop / label, folder)
                identical += not differing
                total += 1
                print(f"{label:22}{moment:11.2f} s  {found:44}{', '.join(differing) or 'identical'}", flush=True)
    print(f"kill_resume {identical}/{total}")


if __name__ == "__main__":
    main()
