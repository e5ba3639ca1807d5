"""The plain-language paragraph says what the numbers say."""

import pytest

from incdet.report.narrative import narrate, narrate_many
from incdet.report.runs import read_run, read_runs
from incdet.report.settings import settings_of


def set_ap(run, task, values):
    run.tasks[task - 1]["ap"]["voc_area_50"] = values


def test_what_was_kept_is_now_over_before(make_run):
    run = read_run(make_run("a"))
    set_ap(run, 1, {"circle": 0.8, "cross": 0.6})
    set_ap(run, 2, {"circle": 0.4, "cross": 0.2, "ring": 0.9, "star": 0.9})
    before, now = run.old_before_and_now("voc_area_50")
    assert (before, now) == (pytest.approx(0.7), pytest.approx(0.3))
    assert "keeps 43 % of its skill on the old kinds (from 70.0 to 30.0)" in narrate([run])[1]


def test_over_several_tasks_each_class_counts_from_when_it_was_learned(make_run):
    run = read_run(make_run("a", matrix=((0.5,), (0.5, 0.5), (0.5, 0.5, 0.5)), task_classes=(("a",), ("b",), ("c",))))
    set_ap(run, 1, {"a": 0.8})
    set_ap(run, 2, {"a": 0.1, "b": 0.6})
    set_ap(run, 3, {"a": 0.2, "b": 0.4, "c": 1.0})
    assert run.old_before_and_now("voc_area_50") == (pytest.approx(0.7), pytest.approx(0.3))
    assert "more in 2 steps (1, 1)" in narrate([run])[0]


def test_a_class_without_test_objects_counts_on_neither_side(make_run):
    run = read_run(make_run("a"))
    set_ap(run, 1, {"circle": 0.8, "cross": None})
    set_ap(run, 2, {"circle": 0.4, "cross": None, "ring": 0.9, "star": 0.9})
    assert run.old_before_and_now("voc_area_50") == (pytest.approx(0.8), pytest.approx(0.4))


def test_the_baseline_the_ceiling_the_killed_and_the_stamped_are_told_apart(make_run):
    runs = read_runs(
        [
            make_run("a", methods=["finetune"], matrix=((0.7,), (0.0, 0.8))),
            make_run("b", methods=["joint"]),
            make_run("c", methods=["replay"], finished=1),
            make_run("d", stamps=["oracle"]),
            make_run("e", methods=["independent"]),
        ]
    )
    text = " ".join(narrate(runs))
    assert "Plain fine-tuning (finetune) keeps 0 % of its skill" in text
    assert "joint, trained on the labels of all classes at once" in text
    assert "the ceiling" in text
    assert "independent, which starts anew with every task" in text
    assert "replay has learned 2 kinds of object so far" in text
    assert "replay was stopped after 1 of 2 tasks" in text
    assert "pseudo_label [ORACLE] keeps" in text


def test_nothing_known_is_nothing_to_keep(make_run):
    run = read_run(make_run("a", matrix=((0.0,), (0.0, 0.5))))
    assert "had no skill to keep" in narrate([run])[1]


def test_agreement_is_not_called_skill(make_run):
    run = read_run(make_run("a", stamps=["old_by_agreement"]))
    sentences = narrate([run])
    assert " % of its agreement with the old detector on the old kinds" in sentences[1]
    assert "agreement with that detector and not accuracy" in sentences[2]


def test_a_classifier_is_not_called_a_detector(make_run):
    text = " ".join(narrate([read_run(make_run("a"))], "top1"))
    assert text.startswith("A classifier that knew 2 kinds")
    assert "detector" not in text
    assert "every image is recognised" in text
    text = " ".join(narrate([read_run(make_run("b"))], "multi_label_ap"))
    assert text.startswith("A classifier that could name 2 kinds")
    assert "detector" not in text
    assert "has a higher score for it than any that does not" in text


def test_a_run_with_one_head_per_task_speaks_of_its_own_metric(make_run):
    run = read_run(make_run("a"))
    run.results["summary"] = {"top1_task": run.results["summary"]["voc_area_50"]}
    for task in run.tasks:
        task["ap"]["top1_task"] = task["ap"]["voc_area_50"]
    told = narrate([run], "top1")[1]
    assert "unknown" not in told
    assert f"reaches {100 * run.score('top1_task', 'new'):.1f} on the new. It is told which task" in told


def test_of_many_settings_the_best_and_the_worst_are_told_and_the_ceiling(make_run):
    runs = read_runs(
        [
            make_run("a", methods=["finetune"], matrix=((0.8,), (0.0, 0.8))),
            make_run("b", methods=["replay"], seed=0),
            make_run("c", methods=["replay"], seed=1),
            make_run("d", methods=["joint"]),
            make_run("e", methods=["mas"], stamps=["oracle"], finished=1),
            make_run("f", methods=["mas"], stamps=["oracle"], finished=1, seed=1),
        ]
    )
    for run, (before, now) in zip(runs, ((0.8, 0.0), (0.8, 0.4), (0.8, 0.6), (0.8, 0.8)), strict=False):
        set_ap(run, 1, {"circle": before, "cross": before})
        set_ap(run, 2, {"circle": now, "cross": now, "ring": 0.9, "star": 0.9})
    sentences = narrate_many(settings_of(runs))
    told = " ".join(sentences)
    assert "Here are 6 runs of 4 settings." in told
    assert "replay keeps 62 % of its skill on the old kinds: the most here." in told  # (40 + 60) / (80 + 80)
    assert "Plain fine-tuning (finetune) keeps 0 %: the least." in told
    reached = 100 * runs[3].score("voc_area_50", "all")
    assert f"joint, trained on the labels of all classes at once, reaches {reached:.1f} on all kinds" in told
    assert told.count("was stopped after 1 of 2 tasks") == 1  # two seeds of one setting
    assert told.count("What the stamp on mas, 1 of 2 tasks [ORACLE] means") == 1


def test_nothing_is_told_of_what_is_kept_before_a_second_task(make_run):
    settings = settings_of(read_runs([make_run("a", finished=1), make_run("b", methods=["x"], finished=1)]))
    assert "keeps" not in " ".join(narrate_many(settings))
