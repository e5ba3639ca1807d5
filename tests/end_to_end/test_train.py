"""A whole run through the command line: its files, its numbers, every method, and what two runs may share."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from incdet.backends.base import BASE_LOSSES
from incdet.cli import main
from incdet.evaluation.results import METRICS, read_run_results, read_task_result
from incdet.methods import method_class, method_names
from incdet.methods.base import Method

PROTOCOL = {
    "split", "protocol", "classes", "class_order", "class_order_hash", "tasks", "difficult", "train", "test",
    "held_out", "memory", "seed", "backend", "model", "commit", "version", "stamps",
}  # fmt: skip
SUMMARY = {
    "old", "new", "all", "base_old", "base_new", "average_incremental", "average_incremental_after_base", "acc",
    "forgetting", "fpp", "bwt", "harmonic_mean", "group_average",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_first_task(config, tmp_path_factory) -> Path:
    """A run that stopped after its first task, with its own ``cache`` of first tasks inside."""
    folder = tmp_path_factory.mktemp("plain")
    keys = ["OUTPUT_DIR", str(folder), "FIRST_TASK_CACHE", str(folder / "cache")]
    assert main(["train", "--config-file", str(config), "--task", "1", *keys]) == 0
    return folder


def test_run_folder_holds_what_the_architecture_page_says(train, capsys):
    folder = train("run")
    expected = {"config.yaml", "protocol.json", "metrics.jsonl", "results.json", "report.html"}
    expected |= {f"task_{t}/{f}" for t in (1, 2) for f in ("model.safetensors", "predictions.json", "result.json")}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith("tensorboard/")} == expected
    assert "report.html" in capsys.readouterr().out

    results = read_run_results(folder / "results.json")
    assert results["methods"] == ["finetune"]
    assert results["protocol"].keys() >= PROTOCOL
    assert results["protocol"]["tasks"] == [results["protocol"]["classes"][:10], results["protocol"]["classes"][10:]]
    assert results["protocol"]["train"]["images"] == 48
    for metric in METRICS:
        assert [len(row) for row in results["matrix"][metric]] == [1, 2]
        assert results["summary"][metric].keys() == SUMMARY
    for task in (1, 2):
        result = read_task_result(folder / f"task_{task}" / "result.json")
        assert result == results["tasks"][task - 1]
        assert result["protocol"].keys() >= PROTOCOL
        assert len(result["ap"]["voc_area_50"]) == 10 * task
        assert result["train"]["iterations"] == (8, 6)[task - 1]
        assert result["evaluate"]["images"] == 16


def test_metrics_have_one_line_for_each_logged_iteration(train):
    lines = [json.loads(line) for line in (train("run", LOG_PERIOD=4) / "metrics.jsonl").read_text().splitlines()]
    assert [(line["task"], line["iteration"]) for line in lines] == [(1, 3), (1, 7), (2, 3), (2, 5)]
    losses = [value for key, value in lines[0].items() if key.startswith("loss_")]
    assert sum(losses) == pytest.approx(lines[0]["loss"], abs=1e-5)
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.001, 0.01, 0.01])


def test_saved_model_carries_its_classes_and_configuration(train):
    folder = train("run", "--task", "1")
    with safe_open(folder / "task_1" / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == read_run_results(folder / "results.json")["protocol"]["classes"][:10]
    assert "MAX_ITER: 8" in metadata["config"]


UNCOUNTED = ("model.safetensors", "predictions.json", "pseudo_labels.json", "result.json")


@pytest.mark.parametrize("method", method_names("detection"))
def test_every_method_learns_two_tasks(train, method):
    folder = train("run", METHODS=[method])
    results = read_run_results(folder / "results.json")
    assert results["methods"] == [method]
    assert [len(row) for row in results["matrix"]["voc_area_50"]] == [1, 2]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["task"] == 2
    added = {key for key in last if key.startswith("loss_")} - set(BASE_LOSSES)
    assert bool(added) == (method_class(method).losses is not Method.losses)
    # Whatever else a method kept in the folder for later would be counted nowhere.
    kept = [path for path in (folder / "task_2").iterdir() if path.is_file() and path.name not in UNCOUNTED]
    assert all(path.suffix == ".safetensors" for path in kept)
    assert results["protocol"]["memory"]["method_bytes"] == sum(path.stat().st_size for path in kept)


def test_replay_and_pseudo_labels_over_three_tasks(train):
    folder = train("run", METHODS=["replay", "pseudo_label"], TASKS__SPLIT="10+5+5", METHOD__REPLAY__IMAGES_PER_CLASS=2)
    results = read_run_results(folder / "results.json")
    assert [len(row) for row in results["matrix"]["voc_area_50"]] == [1, 2, 3]
    stored = {path.name for path in (folder / "memory" / "images").iterdir()}
    assert results["protocol"]["memory"]["images"] == len(stored) > 0
    entries = json.loads((folder / "memory" / "memory.json").read_text())["exemplars"]
    assert {entry["file"] for entry in entries} == stored
    assert max(entry["rank"] for entry in entries) == 1
    assert {entry["kept_for"] for entry in entries} == set(range(20))
    memories = [result["protocol"]["memory"]["images"] for result in results["tasks"]]
    assert memories == sorted(memories)
    assert memories[0] < memories[2]
    for task in (2, 3):
        assert json.loads((folder / f"task_{task}" / "pseudo_labels.json").read_text())
        assert results["tasks"][task - 1]["extra"]["pseudo_labels"]


def test_frozen_stages_keep_their_bits_and_the_others_learn(train):
    folder = train("run")
    before, after = (load_file(folder / f"task_{task}" / "model.safetensors") for task in (1, 2))
    same = {name for name in before if before[name].shape == after[name].shape and before[name].equal(after[name])}
    frozen = {name for name in before if name.startswith(("backbone.body.conv1", "backbone.body.layer1"))}
    statistics = {name for name in before if "running_" in name}
    assert frozen <= same
    assert statistics <= same
    assert "backbone.body.layer3.1.conv2.weight" not in same


def test_task_stops_early_and_resume_goes_on(train):
    folder = train("run", "--task", "1")
    assert not (folder / "task_2").exists()
    assert len(read_run_results(folder / "results.json")["tasks"]) == 1
    train("run", "--resume")
    whole = train("whole")
    assert _predictions(folder, 2) == _predictions(whole, 2)
    # Asking again for less takes nothing away.
    train("run", "--resume", "--task", "1")
    assert len(read_run_results(folder / "results.json")["tasks"]) == 2


@pytest.mark.parametrize("task", ["0", "-1", "3"])
def test_task_beyond_the_split_is_refused(train, capsys, task):
    train("run", f"--task={task}", expect=2)
    assert f"has tasks 1 to 2, got {task}" in capsys.readouterr().err


def test_eval_only_gives_the_same_results(train):
    folder = train("run", METHODS=["pseudo_label"])
    paths = [*folder.glob("task_*/result.json"), *folder.glob("task_*/predictions.json"), folder / "results.json"]
    before = {path: _without_times(path) for path in paths}
    for path in paths[:-1]:
        if path.name == "predictions.json":
            path.unlink()
    train("run", "--eval-only", METHODS=["pseudo_label"])
    assert {path: _without_times(path) for path in paths} == before


def test_eval_only_without_a_model_is_refused(train, capsys):
    train("run", "--task", "1")
    train("run", "--eval-only", expect=2)
    assert "learn task 2 before testing it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        {"SOLVER__EMA_DECAY": 0.5},
        {"SOLVER__OPTIMIZER": "AdamW", "SOLVER__BASE_LR": 0.001},
        {"SOLVER__PRECISION": "bf16-mixed"},
        {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR"},
        {"MODEL__NECK": "c4", "MODEL__ANCHOR_GENERATOR__SIZES": "((16, 24, 36),)"},
        {"INPUT__ZOOM_OUT": 1.5, "INPUT__COLOR_JITTER": 0.2, "DATALOADER__NUM_WORKERS": 1},
    ],
    ids=["ema", "adamw", "bf16", "cosine", "c4", "augmentation"],
)
def test_recipe_changes_what_is_learned(train, plain_first_task, overrides):
    other = train("other", "--task", "1", **overrides)
    weights = [load_file(folder / "task_1" / "model.safetensors") for folder in (plain_first_task, other)]
    name = "rpn.head.cls_logits.weight"
    assert all(torch.isfinite(tensor).all() for tensor in weights[1].values())
    assert weights[0][name].shape != weights[1][name].shape or not weights[0][name].equal(weights[1][name])


def test_number_of_workers_changes_nothing(train, plain_first_task):
    two = train("two", "--task", "1", DATALOADER__NUM_WORKERS=2)
    assert _predictions(plain_first_task, 1) == _predictions(two, 1)


def test_first_task_is_trained_once_for_two_methods(train, tmp_path):
    cache = tmp_path / "first_tasks"
    first = train("first", FIRST_TASK_CACHE=cache)
    second = train("second", METHODS=["pseudo_label"], FIRST_TASK_CACHE=cache)
    alone = train("alone", METHODS=["pseudo_label"])
    assert len(list(cache.iterdir())) == 1
    assert _tasks_trained(first) == {1, 2}
    assert _tasks_trained(second) == {2}
    for task in (1, 2):
        assert _predictions(second, task) == _predictions(alone, task)


@pytest.mark.parametrize(
    "change",
    [
        {"SEED": 1},
        {"SOLVER__BASE_LR": 0.005},
        {"MODEL__FPN__OUT_CHANNELS": 24},
        {"DATASETS__HELD_OUT": 0.2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_first_task_is_not_shared_between_different_problems(train, plain_first_task, tmp_path, change):
    cache = tmp_path / "first_tasks"
    shutil.copytree(plain_first_task / "cache", cache)
    assert _tasks_trained(train("second", "--task", "1", FIRST_TASK_CACHE=cache, **change)) == {1}
    assert len(list(cache.iterdir())) == 2


def _predictions(folder: Path, task: int) -> bytes:
    return (folder / f"task_{task}" / "predictions.json").read_bytes()


def _tasks_trained(folder: Path) -> set[int]:
    log = folder / "metrics.jsonl"
    return {json.loads(line)["task"] for line in log.read_text().splitlines()} if log.exists() else set()


def _without_times(path: Path) -> object:
    content = json.loads(path.read_text())
    for result in content.get("tasks", [content]) if isinstance(content, dict) else []:
        del result["evaluate"]["seconds"]
    return content
