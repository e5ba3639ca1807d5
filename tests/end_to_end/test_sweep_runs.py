"""A sweep from its command to the values that it found, whole and cut short."""

import csv
import json

import pytest
from comparison import differences

from incdet.cli import main
from incdet.cli.config import read_config
from incdet.data.views import task_view
from incdet.engine import loop
from incdet.engine.protocol import Problem

pytest.importorskip("optuna")

SPACE = """
METHOD.PSEUDO_LABEL.SCORE_ROI: {low: 0.08, high: 0.9}
NEXT_TASKS.SOLVER.BASE_LR: {low: 1e-3, high: 1e-1, log: true}
"""
FIRST, SECOND = 8, 6  # iterations


@pytest.fixture
def sweep(config, tmp_path):
    """``sweep(folder, *words, expect=0)``: two trials of pseudo-labels."""

    def run(name, *words, space=SPACE, trials=2, expect=0):
        (tmp_path / "space.yaml").write_text(space)
        files = ["--config-file", str(config), "--space", str(tmp_path / "space.yaml"), "--out", str(tmp_path / name)]
        keys = ["METHODS", "pseudo_label", *words]
        assert main(["sweep", *files, "--trials", str(trials), *keys]) == expect
        return tmp_path / name

    return run


def read(path):
    return json.loads(path.read_text())


def trained_tasks(folder):
    return [json.loads(line)["task"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_trials_find_values_on_the_first_task_alone(sweep, config, capsys):
    folder = sweep("out")
    cfg = read_config(config, [])
    whole = Problem.load(cfg)
    of_first_task = {image.record.image_id for image in task_view(whole.train, whole.stream, whole.stream[0]).images}
    trained = [trained_tasks(folder / f"trial_{number}") for number in (0, 1)]
    assert trained == [[1] * FIRST + [2] * SECOND, [2] * SECOND]  # the first task is shared

    for number in (0, 1):
        results = read(folder / f"trial_{number}" / "results.json")
        block = results["protocol"]
        assert (block["split"], block["proxy_of"], block["held_out"]) == ("5+5", "10+10", True)
        assert block["classes"] == list(whole.stream[0].new)
        taught = [set(task["image_ids"]) for task in read(folder / f"trial_{number}" / "protocol.json")["tasks"]]
        detected = {entry["image_id"] for entry in read(folder / f"trial_{number}" / "task_2" / "predictions.json")}
        assert set.union(*taught) | detected <= of_first_task
        assert detected.isdisjoint(set.union(*taught))

    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert float(rows[0]["METHOD.PSEUDO_LABEL.SCORE_ROI"]) == 0.08  # as configured
    assert {"old", "new", "all"} < rows[0].keys()
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert "METHOD.PSEUDO_LABEL.SCORE_ROI" in capsys.readouterr().out

    chosen = config.parent / "chosen.yaml"
    chosen.write_text(f"_BASE_: [{config.name}, {folder / 'best.yaml'}]\n")
    best = max(rows, key=lambda row: (float(row["all"]), -int(row["trial"])))
    merged = read_config(chosen, [])
    assert float(best["METHOD.PSEUDO_LABEL.SCORE_ROI"]) == merged.METHOD.PSEUDO_LABEL.SCORE_ROI
    assert float(best["NEXT_TASKS.SOLVER.BASE_LR"]) == merged.NEXT_TASKS.SOLVER.BASE_LR
    assert merged.TASKS.PROXY == ""  # the values, not the proxy

    assert main(["report", str(folder / "trial_1"), "--out", str(folder / "page.html")]) == 0
    assert "data:image/jpeg" in (folder / "page.html").read_text()


def test_a_sweep_that_was_cut_short_goes_on_to_the_bit(sweep, monkeypatch):
    whole = sweep("whole")
    calls = iter(range(10_000))

    def check(losses, iteration):
        if next(calls) == FIRST + SECOND + 5:  # in the second trial
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_losses", check)
        folder = sweep("out", expect=130)
    assert (folder / "trial_1" / "task_2" / "state.pt").exists()
    assert len((folder / "trials.csv").read_text().splitlines()) == 2
    assert sweep("out") == folder
    for name in ("trials.csv", "trials.md", "trials.png"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert differences(whole / "trial_1", folder / "trial_1") == []

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_losses", None)  # nothing is trained again
        sweep("out")
    sweep("out", "SOLVER.MOMENTUM", "0.5", expect=2)


def test_trials_that_diverge_are_named_and_are_not_the_end(sweep, capsys):
    space = "NEXT_TASKS.SOLVER.BASE_LR: {low: 1e29, high: 1e30}"
    keys = ("NEXT_TASKS.SOLVER.WARMUP_ITERS", "0", "NEXT_TASKS.SOLVER.CLIP_GRADIENTS.ENABLED", "False")
    folder = sweep("out", *keys, space=space, expect=2)
    said = capsys.readouterr().err
    assert "All 2 trials diverged" in said
    assert "trial 1 diverged: iteration" in said
    assert (folder / "trials.md").read_text().count("| diverged | diverged | diverged |") == 2
    assert not (folder / "best.yaml").exists()
