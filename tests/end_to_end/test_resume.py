"""A run that was cut short goes on as if nothing had happened; one that cannot go on says why."""

import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from comparison import differences

from incdet.engine import loop
from incdet.engine.stream import Run

ROOT = Path(__file__).parents[2]
REPLAY = {"METHODS": ["replay", "pseudo_label"], "METHOD__REPLAY__IMAGES_PER_CLASS": 2}
IOD = {"METHODS": ["iod"], "METHOD__IOD__GAMMA": 2, "METHOD__IOD__FINETUNE_ITER": 3}
AVERAGED = {"SOLVER__EMA_DECAY": 0.5, "SOLVER__OPTIMIZER": "AdamW", "SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR"}


def interrupt_at(monkeypatch, task: int, iteration: int) -> None:
    """Press Ctrl-C in the middle of a step."""
    calls = iter(range(10_000))
    stop = {1: iteration, 2: 8 + iteration}[task]

    def check(losses, number):
        if next(calls) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "check_losses", check)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"METHODS": ["faster_ilod"]}, REPLAY, IOD, AVERAGED, {"SOLVER__PRECISION": "bf16-mixed"}],
    ids=["finetune", "faster_ilod", "replay+pseudo_label", "iod", "ema+adamw", "bf16"],
)
def test_interrupted_task_resumes_to_the_bit(train, monkeypatch, capsys, overrides):
    whole = train("whole", **overrides)
    with monkeypatch.context() as patch:
        interrupt_at(patch, task=2, iteration=5)
        folder = train("run", expect=130, **overrides)
    assert "--resume" in capsys.readouterr().err
    assert torch.load(folder / "task_2" / "state.pt", weights_only=True)["iteration"] == 4
    train("run", "--resume", **overrides)
    assert differences(whole, folder) == []


def test_run_interrupted_before_its_first_state_starts_its_task_again(train, monkeypatch):
    whole = train("whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, task=1, iteration=1)
        folder = train("run", expect=130)
    assert not (folder / "task_1").exists()
    train("run", "--resume")
    assert differences(whole, folder) == []


@pytest.mark.parametrize("moment", ["_test", "_conclude"])
def test_run_interrupted_after_training_trains_nothing_again(train, monkeypatch, moment):
    whole = train("whole", **REPLAY)

    def stop(run, *_):
        if (run.folder / "task_2" / "model.safetensors").exists():
            raise KeyboardInterrupt
        return original(run, *_)

    original = getattr(Run, moment)
    with monkeypatch.context() as patch:
        patch.setattr(Run, moment, stop)
        folder = train("run", expect=130, **REPLAY)
    with monkeypatch.context() as patch:
        patch.setattr("incdet.engine.stream.train_task", None)
        train("run", "--resume", **REPLAY)
    assert differences(whole, folder) == []


@pytest.mark.slow
def test_killed_run_resumes_to_the_bit(train, config, tmp_path):
    whole = train("whole", **REPLAY)
    folder = tmp_path / "run"
    words = [sys.executable, "tools/train_net.py", "--config-file", str(config)]
    keys = ["OUTPUT_DIR", str(folder), "METHODS", str(REPLAY["METHODS"]), "METHOD.REPLAY.IMAGES_PER_CLASS", "2"]
    process = subprocess.Popen([*words, *keys], cwd=ROOT, env=_environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "config.yaml").exists():
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    train("run", "--resume", **REPLAY)
    assert differences(whole, folder) == []


def test_folder_of_another_run_is_refused(train, capsys):
    train("run", "--task", "1")
    train("run", expect=2)
    assert "--resume" in capsys.readouterr().err
    train("run", "--resume", expect=2, SOLVER__BASE_LR=0.3, SEED=4)
    message = capsys.readouterr().err
    assert "SOLVER.BASE_LR: now 0.3, then 0.01" in message
    assert "SEED: now 4, then 0" in message
    assert "MAX_ITER" not in message


def test_changed_labels_are_refused(train, tmp_path, datasets, capsys):
    train("run", "--task", "1")
    moved = tmp_path / "moved"
    moved.mkdir()
    for entry in datasets.iterdir():
        (moved / entry.name).symlink_to(entry)
    train("run", "--resume", "--task", "1", DATASETS__ROOT=moved)
    (moved / "shapes").unlink()
    subprocess.run(["cp", "-r", datasets / "shapes", moved / "shapes"], check=True)
    lists = moved / "shapes" / "ImageSets" / "Main" / "train.txt"
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[1:]))
    train("run", "--resume", expect=2, DATASETS__ROOT=moved)
    assert "other training images or labels" in capsys.readouterr().err


class Bomb:
    """Pickled, it writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "boom"))


def _cut(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def _booby_trap(path: Path, target: Path) -> None:
    torch.save({"iteration": 4, "seconds": 0.0, "student": Bomb(target)}, path)


def _raw_pickle(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(target)))


def _other_content(path: Path, _: Path) -> None:
    torch.save({"iteration": 4}, path)


def _other_model(path: Path, _: Path) -> None:
    torch.save(torch.load(path, weights_only=True) | {"student": {"weight": torch.zeros(2)}}, path)


@pytest.mark.parametrize("damage", [_cut, _empty, _booby_trap, _raw_pickle, _other_content, _other_model])
def test_damaged_state_is_one_clear_error(train, monkeypatch, capsys, tmp_path, damage):
    with monkeypatch.context() as patch:
        interrupt_at(patch, task=1, iteration=3)
        folder = train("run", expect=130)
    target = tmp_path / "executed"
    damage(folder / "task_1" / "state.pt", target)
    capsys.readouterr()
    train("run", "--resume", expect=2)
    error = capsys.readouterr().err
    assert "state.pt cannot be used to resume" in error
    assert "Delete it" in error
    assert "Traceback" not in error
    assert not target.exists()
    (folder / "task_1" / "state.pt").unlink()
    train("run", "--resume", "--task", "1")


def test_truncated_model_is_one_clear_error(train, capsys):
    folder = train("run", "--task", "1")
    model = folder / "task_1" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1000])
    train("run", "--resume", expect=2)
    error = capsys.readouterr().err
    assert str(model) in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_full_disk_leaves_earlier_results_readable(train, config, tmp_path):
    """A limit on the size of a file refuses a write as a full disk does; models are smaller than states."""
    whole = train("whole")
    folder = train("run", "--task", "1")
    largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    words = [sys.executable, "tools/train_net.py", "--config-file", str(config), "--resume", "OUTPUT_DIR", str(folder)]
    answer = subprocess.run(
        words,
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 1000, resource.RLIM_INFINITY)),
    )
    assert answer.returncode == 2, answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last.startswith(f"error: Cannot write {folder}/task_2/state.pt: File too large")
    assert "--resume" in last
    assert "Traceback" not in answer.stderr
    assert [path.name for path in (folder / "task_2").iterdir()] == []
    train("run", "--resume")
    assert differences(whole, folder) == []


def test_loss_that_is_not_finite_stops_the_run(train, capsys):
    folder = train("run", expect=2, SOLVER__BASE_LR=1e30, SOLVER__WARMUP_ITERS=0, SOLVER__CLIP_GRADIENTS__ENABLED=False)
    error = capsys.readouterr().err
    assert "a loss is not finite" in error
    assert "loss_rpn_cls" in error
    assert "SOLVER.BASE_LR" in error
    assert not list(folder.rglob("model.safetensors"))


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
