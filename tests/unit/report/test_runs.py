"""Reading run folders: whole, partial, damaged."""

import pytest

from incdet.errors import DataError, IncdetError
from incdet.report.runs import number, read_metrics, read_run, read_runs


def test_a_whole_run_is_read_as_written(make_run):
    run = read_run(make_run("a", methods=["pseudo_label", "replay"], matrix=((0.5,), (0.4, 0.6))))
    assert run.label == "pseudo_label + replay"
    assert run.finished
    assert run.task_classes == [["circle", "cross"], ["ring", "star"]]
    assert run.memory("bytes") == 150_000
    assert run.train_seconds == 160.0
    assert [len(row) for row in run.matrix("voc_area_50")] == [1, 2]
    assert run.score("voc_area_50", "no such key") is None


def test_a_killed_run_gives_the_tasks_that_it_finished(make_run):
    run = read_run(make_run("a", finished=1))
    assert not run.finished
    assert len(run.tasks) == 1
    assert run.methods == ("pseudo_label",)
    assert run.score("voc_area_50", "new") is not None
    assert run.score("voc_area_50", "old") is None
    assert run.protocol["split"] == "2+2"


def test_equal_labels_are_told_apart_by_seed_or_else_by_folder(make_run):
    a, b, c = make_run("a", seed=0), make_run("b", seed=1), make_run("c", seed=1)
    other, nested = make_run("d", methods=["joint"]), make_run("deep/b", seed=1)
    assert [run.label for run in read_runs([a, b, other])] == ["pseudo_label, seed 0", "pseudo_label, seed 1", "joint"]
    assert [run.label for run in read_runs([b, c])] == ["pseudo_label, b", "pseudo_label, c"]
    assert [run.label for run in read_runs([b, nested])] == [f"pseudo_label, {b}", f"pseudo_label, {nested}"]
    assert [run.label for run in read_runs([a, a.parent / "x" / ".." / "a"])] == ["pseudo_label"]


def test_a_stamp_of_one_task_stamps_the_run(make_run):
    assert read_run(make_run("a", stamps=["oracle"])).stamps == ("oracle",)
    assert read_run(make_run("b")).stamps == ()


def test_the_line_cut_by_a_kill_is_left_out_but_damage_elsewhere_is_reported(make_run):
    folder = make_run("a")
    whole = read_metrics(folder)
    path = folder / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text[:-5])
    assert read_metrics(folder) == whole[:-1]
    path.write_text("{oops\n" + text)
    with pytest.raises(DataError, match="line 1"):
        read_metrics(folder)


def test_what_cannot_be_read_is_refused(make_run, tmp_path):
    with pytest.raises(DataError, match="at least one"):
        read_runs([])
    with pytest.raises(DataError, match="not a folder"):
        read_run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no task of this run was finished"):
        read_run(tmp_path / "empty")
    folder = make_run("damaged")
    (folder / "results.json").write_text('{"schema": 1, ')
    with pytest.raises(IncdetError, match="not whole JSON"):
        read_run(folder)
    (folder / "results.json").write_text('{"schema": 99}')
    with pytest.raises(DataError, match="schema"):
        read_run(folder)


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf")])
def test_only_finite_numbers_are_numbers(value):
    assert number(value) is None
