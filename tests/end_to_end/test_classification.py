"""A classifier learns digits in two tasks by the same command, is resumed, aligned, and reported on."""

from functools import partial
from pathlib import Path

import pytest
import torch
from comparison import differences

from incdet.cli import main
from incdet.data.digits import bundled_digits, write_digits
from incdet.engine import loop
from incdet.evaluation.results import read_run_results
from incdet.files import read_json

CONFIGS = Path(__file__).parents[2] / "configs/classification/digits/5+5"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_digits(bundled_digits(), root / "digits")
    return root


@pytest.fixture
def learn(data, tmp_path):
    def run(config: str, folder: str, *flags: str, iterations: int = 60, expect: int = 0, keys: list[str] = ()) -> Path:
        keys = [*keys, "DATASETS.ROOT", str(data), "OUTPUT_DIR", str(tmp_path / folder), "FIRST_TASK_CACHE", ""]
        keys += ["SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", "10", "METHOD.ELI.ITERATIONS", "5"]
        assert main(["train", "--config-file", str(CONFIGS / f"{config}.yaml"), *flags, *keys]) == expect
        return tmp_path / folder

    return run


def top1(folder: Path, metric: str = "top1") -> dict:
    return read_run_results(folder / "results.json")["summary"][metric]


def test_forgetting_its_bound_and_a_remedy(learn):
    finetune, replay, joint = (learn(name, name) for name in ("finetune", "replay", "joint"))
    assert top1(finetune)["old"] < 0.1
    assert top1(finetune)["new"] > 0.8
    assert top1(finetune)["old"] < top1(replay)["old"] < top1(joint)["old"]
    assert top1(joint)["all"] > 0.85
    text = (finetune / "report.html").read_text()
    assert "A classifier that knew" in text
    assert "Average precision" not in text


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        *((name, "") for name in ("eli_multi_head", "ewc_multi_head", "mas", "hat", "icarl", "lucir")),
        ("hat", "MODEL.BACKBONE.NAME resnet18 MODEL.BACKBONE.WIDTH 8 MODEL.BACKBONE.NORM none SOLVER.BASE_LR 0.001"),
    ],
)
def test_killed_and_resumed_to_the_bit(learn, monkeypatch, config, keys):
    learn = partial(learn, config, iterations=30, keys=keys.split())
    whole = learn("whole")
    calls = iter(range(1000))

    def check(losses, number):
        if next(calls) == 45:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_losses", check)
        folder = learn("run", expect=130)
    assert torch.load(folder / "task_2" / "state.pt", weights_only=True)["iteration"] == 10
    learn("run", "--resume")
    assert differences(whole, folder) == []


def test_one_head_per_task_is_aligned_by_reading_each_where_its_task_left_it(learn):
    plain = learn("finetune_multi_head", "plain")
    assert set(read_run_results(plain / "results.json")["summary"]) == {"top1_task"}
    assert main(["alignment", str(plain), "--presets", "classification_linear"]) == 0
    study = read_json(plain / "task_2" / "alignment.json", "a study")
    old = {row["aligner"]: row["groups"]["top1_task"]["old"] for row in study["readings"]}
    new = {row["groups"]["top1_task"]["new"] for row in study["readings"]}
    assert {row["gate"] for row in study["readings"]} == {"", "head"}
    assert old["ridge"] > old[""]
    assert len(new) == 1


def test_what_is_kept_beside_the_model_is_counted_task_by_task(learn):
    folder = learn("mbpa", "run", iterations=10)
    results = read_run_results(folder / "results.json")
    kept = [(folder / f"task_{task}" / "keys.safetensors").stat().st_size for task in (1, 2)]
    assert [task["protocol"]["memory"]["method_bytes"] for task in results["tasks"]] == kept
    assert results["protocol"]["memory"] == {"images": 0, "crops": 0, "bytes": 0, "method_bytes": kept[1]}


@pytest.mark.parametrize("config", ["icarl", "mbpa", "hat"])
def test_a_run_that_is_not_tested_by_its_head_is_not_aligned(learn, capsys, config):
    folder = learn(config, "run", iterations=10)
    path = folder / "task_2" / "alignment.json"
    for _ in range(2):
        assert main(["alignment", str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"expected a run that is tested by its head alone, got METHODS: {config}" in error
        assert ("METHOD.ICARL.READING: head" in error) == (config == "icarl")
        assert "Leave the run out" in error
        path.write_text("{}")  # as an earlier version would have left: not shown either


def test_the_row_without_an_aligner_is_the_runs_result(learn):
    folder = learn("replay", "run", iterations=10)
    assert main(["alignment", str(folder), "--presets", "classification_linear"]) == 0
    rows = read_json(folder / "task_2" / "alignment.json", "a study")["readings"]
    assert rows[0]["groups"] == read_run_results(folder / "results.json")["tasks"][1]["groups"]
