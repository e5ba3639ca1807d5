import json

import pytest

from incdet.engine.logs import MetricsLog
from incdet.errors import IncdetError


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_values_are_rounded_and_kept_in_order(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", task=1, iteration=0)
    log.write(1, 4, {"loss": 1 / 3, "lr": 0.01})
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"task": 1, "iteration": 4, "loss": 0.333333, "lr": 0.01}]


def test_resuming_drops_the_lines_of_steps_to_be_taken_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"task": t, "iteration": i}) + "\n" for t, i in [(1, 8), (1, 9), (2, 0), (2, 1)])
    )
    MetricsLog(path, task=2, iteration=1)
    assert [(line["task"], line["iteration"]) for line in lines(path)] == [(1, 8), (1, 9), (2, 0)]


def test_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"task": 1, "iteration": 0}\n{"task": 1, "iter')
    MetricsLog(path, task=1, iteration=1)
    assert lines(path) == [{"task": 1, "iteration": 0}]


def test_log_that_cannot_be_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 1, 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(IncdetError, match=r"Cannot write .*metrics\.jsonl: No space left on device.*--resume"):
        log.write(1, 0, {"loss": 1.0})
