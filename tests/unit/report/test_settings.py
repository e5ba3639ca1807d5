"""Settings: runs of one name are one row, whatever their seeds, unless a kill or a stamp parts them."""

import pytest

from incdet.report.runs import read_runs
from incdet.report.settings import means, settings_of


def test_seeds_are_joined_in_the_order_in_which_settings_come(make_run):
    runs = read_runs(
        [make_run("a"), make_run("b", methods=["joint"]), make_run("c", seed=1), make_run("d", name="other", seed=1)]
    )
    settings = settings_of(runs)
    assert [setting.title for setting in settings] == ["pseudo_label", "joint", "other"]
    assert [[run.protocol["seed"] for run in setting.runs] for setting in settings] == [[0, 1], [0], [1]]
    assert [run.title for run in settings[0].relabelled] == ["pseudo_label"] * 2


def test_killed_and_stamped_runs_are_settings_of_their_own(make_run):
    runs = read_runs(
        [
            make_run("a"),
            make_run("b", seed=1),
            make_run("c", seed=2, finished=1),
            make_run("d", seed=3, finished=1),
            make_run("e", seed=4, stamps=["oracle"]),
        ]
    )
    titles = [setting.title for setting in settings_of(runs)]
    assert titles == ["pseudo_label", "pseudo_label, 1 of 2 tasks", "pseudo_label, seed 4 [ORACLE]"]


def test_a_number_is_a_mean_with_its_deviation(make_run):
    (setting,) = settings_of(read_runs([make_run("a", seed=1), make_run("b", seed=3)]))
    cell = setting.cell(lambda run: float(run.protocol["seed"]))
    assert cell.mean == 2
    assert cell.std == pytest.approx(2**0.5)


def test_a_setting_without_the_wanted_metric_shows_its_own_and_says_so(make_run):
    (setting,) = settings_of(read_runs([make_run("a")]))
    assert (setting.metric("coco"), setting.note("coco")) == ("coco", "")
    assert (setting.metric("top1"), setting.note("top1")) == ("voc_area_50", " (AP50 (area))")
    setting.runs[0].results["summary"] = {}  # nothing is known: nothing better to show
    assert setting.metric("top1") == "top1"


def test_means_leave_out_what_is_undefined():
    assert means([[1.0, None, None], [2.0, 4.0, None]]) == [1.5, 4.0, None]
