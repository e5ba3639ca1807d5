"""Result files: what is scored, what is summed up, and what is refused on reading."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from incdet.errors import DataError, IncdetError
from incdet.evaluation.results import (
    METRICS,
    read_run_results,
    read_task_result,
    run_results,
    task_result,
    write_result,
)
from incdet.tasks import build_stream

from .scenes import dataset, image, predictions

BOX = [0, 0, 100, 100]
FAR = [200, 200, 300, 300]
CLASSES = ("cow", "ant", "bee")  # not the order of the stream: ant, bee, cow


@pytest.fixture
def stream():
    return build_stream("1+2", CLASSES)


@pytest.fixture
def data():
    return dataset([image("a", [BOX, FAR], [1, 2]), image("b", [BOX], [0])], CLASSES)


@pytest.fixture
def results(data, stream):
    """An ant found after task 1 and half lost after task 2, which finds the bee and misses the cow."""
    first = predictions(data, [(0, BOX, 0.9, 0)], stream.classes)
    second = predictions(data, [(1, BOX, 0.9, 0), (0, BOX, 0.8, 0), (0, FAR, 0.9, 1)], stream.classes)
    found = zip((first, second), stream, strict=True)
    return [task_result(data, one, stream, task, train={"seconds": 2.0}) for one, task in found]


@pytest.fixture
def protocol(stream):
    return {"split": stream.split, "tasks": [list(task.new) for task in stream], "test": {"name": "scenes"}}


def made_up(task, ap, tasks):
    """A result with the same AP under every metric."""
    by_task = [sum(ap[name] for name in names) / len(names) for names in tasks[:task]]
    return {
        "schema": 1, "task": task, "stamps": ["oracle"] if task == 2 else [], "groups": {},
        "ap": dict.fromkeys(METRICS, ap), "by_task": dict.fromkeys(METRICS, by_task),
    }  # fmt: skip


def test_one_task(results):
    first, second = results
    assert set(first["ap"]) == set(METRICS)
    assert first["ap"]["voc_area_50"] == {"ant": 1.0}
    assert first["groups"]["coco"] == {"old": None, "new": pytest.approx(1), "seen": pytest.approx(1)}
    assert second["ap"]["voc_area_50"] == {"ant": 0.5, "bee": 1.0, "cow": 0.0}
    assert second["by_task"]["voc_area_50"] == [0.5, 0.5]
    assert second["train"] == {"seconds": 2.0}
    assert second["evaluate"] == {"images": 2}


def test_images_without_a_seen_class_still_show_false_positives(data, stream):
    found = predictions(data, [(1, BOX, 0.9, 0), (0, BOX, 0.8, 0)], stream.classes)
    assert task_result(data, found, stream, stream[0])["ap"]["voc_area_50"] == {"ant": 0.5}


def test_unseen_classes_are_not_scored(data, stream):
    found = predictions(data, [(0, BOX, 0.9, 0), (0, FAR, 0.9, 1), (1, BOX, 0.9, 2)], stream.classes)
    assert task_result(data, found, stream, stream[0])["ap"]["coco_50"] == {"ant": pytest.approx(1)}


def test_a_class_without_test_objects_is_null(stream):
    data = dataset([image("a", [BOX], [1])], CLASSES)
    result = task_result(data, predictions(data, [(0, BOX, 0.9, 0)], stream.classes), stream, stream[1])
    assert result["ap"]["voc_area_50"] == {"ant": 1.0, "bee": None, "cow": None}
    assert result["groups"]["voc_area_50"] == {"old": 1.0, "new": None, "seen": 1.0}
    assert result["by_task"]["voc_11point_75"] == [pytest.approx(1), None]


def test_a_run(results, protocol):
    run = run_results("demo", ["distill"], protocol, results)
    assert run["matrix"]["voc_area_50"] == [[1.0], [0.5, 0.5]]
    assert run["summary"]["voc_area_50"] == {
        "old": 0.5, "new": 0.5, "all": 0.5, "base_old": 0.5, "base_new": 0.5, "average_incremental": 0.75,
        "average_incremental_after_base": 0.5, "acc": 0.5,
        "forgetting": 0.5, "fpp": 0.5, "bwt": -0.5, "harmonic_mean": 0.5, "group_average": 0.5,
    }  # fmt: skip
    assert run["tasks"] == results


def test_a_run_of_three_tasks():
    tasks = [["a", "b"], ["c"], ["d"]]
    steps = [{"a": 0.8, "b": 0.6}, {"a": 0.6, "b": 0.6, "c": 0.9}, {"a": 0.4, "b": 0.6, "c": 0.6, "d": 0.8}]
    made = [made_up(number, ap, tasks) for number, ap in enumerate(steps, start=1)]
    run = run_results("three", [], {"tasks": tasks}, made)
    assert run["stamps"] == ["oracle"]
    assert run["summary"]["coco"] == pytest.approx(
        {
            "old": 1.6 / 3, "new": 0.8, "all": 0.6, "base_old": 0.5, "base_new": 0.7,
            "average_incremental": (0.7 + 0.7 + 0.6) / 3,
            "average_incremental_after_base": (0.7 + 0.6) / 2, "acc": (0.5 + 0.6 + 0.8) / 3,
            "forgetting": ((0.7 - 0.5) + (0.9 - 0.6)) / 2, "fpp": 0.2, "bwt": -0.25,
            "harmonic_mean": 2 * 1.6 / 3 * 0.8 / (1.6 / 3 + 0.8), "group_average": (1.6 / 3 + 0.8) / 2,
        }
    )  # fmt: skip


def test_an_unfinished_run_is_summed_up_to_where_it_came(results, protocol):
    summary = run_results("half", [], protocol, results[:1])["summary"]["voc_area_50"]
    assert (summary["all"], summary["old"], summary["forgetting"]) == (1.0, None, None)
    assert (summary["acc"], summary["average_incremental_after_base"]) == (1.0, None)


@pytest.mark.parametrize("order", [[], [1], [0, 0], [1, 0], [0, 1, 1]])
def test_tasks_that_are_missing_or_out_of_order(results, protocol, order):
    with pytest.raises(DataError, match="in order"):
        run_results("bad", [], protocol, [results[position] for position in order])


def test_to_disk_and_back(results, protocol, tmp_path):
    run = run_results("demo", ["distill"], protocol, results)
    write_result(tmp_path / "result.json", results[1])
    write_result(tmp_path / "results.json", run)
    assert read_task_result(tmp_path / "result.json") == results[1]
    assert read_run_results(tmp_path / "results.json") == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not whole JSON"),
        (lambda text: "[]", "must be the result of a task"),
        (lambda text: json.dumps(json.loads(text) | {"schema": 2}), "has schema 2"),
        (lambda text: json.dumps(json.loads(text) | {"ap": None}), "ap missing or of another type"),
        (lambda text: json.dumps({"schema": 1}), "task, stamps, ap, groups, by_task missing"),
    ],
)
def test_damaged_files_are_refused(results, tmp_path, change, message):
    path = tmp_path / "result.json"
    write_result(path, results[0])
    path.write_text(change(path.read_text()))
    with pytest.raises(IncdetError, match=message):
        read_task_result(path)


def test_what_nobody_labelled_is_neither_right_nor_wrong(data, stream):
    """Image b was labelled with cows only: the ant found there, the best of all, must not cost precision."""
    found = predictions(data, [(1, FAR, 0.99, 0), (0, BOX, 0.9, 0), (1, BOX, 0.8, 2)], stream.classes)
    before = task_result(data, found, stream, stream[1])["ap"]["voc_area_50"]
    assert before == pytest.approx({"ant": 0.5, "bee": 0.0, "cow": 1.0})
    unlabelled = frozenset({CLASSES.index("ant"), CLASSES.index("bee")})
    partly = replace(data, images=(data.images[0], replace(data.images[1], unlabelled=unlabelled)))
    after = task_result(partly, found, stream, stream[1])["ap"]
    assert after["voc_area_50"] == pytest.approx({"ant": 1.0, "bee": 0.0, "cow": 1.0})
    assert after["coco"]["ant"] == pytest.approx(1.0)
