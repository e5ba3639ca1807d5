"""A page on many runs: shades in the place of bars, one run of a setting where a mean cannot be drawn."""

import re

import pytest

from incdet.report import crowd
from incdet.report.examples import Examples, Panel
from incdet.report.runs import read_runs
from incdet.report.settings import settings_of

METRIC = "voc_area_50"


def cells(html: str) -> list[tuple[str, str, str]]:
    """Of each shaded cell: its background, its number and its small print."""
    return re.findall(r'<td style="(?:background:(#\w+);color:\w+)?">([^<]+)(?:<small>([^<]+)</small>)?</td>', html)


@pytest.fixture
def settings(make_run):
    folders = [make_run("a", seed=0), make_run("b", seed=1), make_run("c", name="<i>", seed=1, stamps=["oracle"])]
    runs = read_runs(folders)
    for run, before, now in zip(runs, (0.9, 0.8, 0.5), (0.5, 0.7, 0.52), strict=True):
        run.tasks[0]["ap"][METRIC] |= {"circle": before}
        run.tasks[1]["ap"][METRIC] |= {"circle": now, "ring": None, "star": 1.0}
    return settings_of(runs)


def test_a_cell_is_the_mean_over_seeds_with_what_was_lost_since(settings):
    html = crowd.class_part(settings, METRIC)
    (mean, *_), (other, *_) = cells(html)[:4], cells(html)[4:]
    assert mean[1:] == ("60", "−25")  # (50 + 70) / 2, from (90 + 80) / 2
    assert other[1:] == ("52", "+2")
    assert cells(html)[2] == ("", "–", "")  # undefined in all
    assert cells(html)[3][1:] == ("100", "")  # just learned: nothing to lose yet
    assert len({shade for shade, *_ in cells(html)}) > 2


def test_rows_are_settings_with_their_stamps_and_columns_are_classes_under_their_tasks(settings):
    html = crowd.class_part(settings, METRIC)
    names = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert names == ["pseudo_label", '&lt;i&gt; <strong class="badge">ORACLE</strong>']
    assert re.findall(r"<span>(\w+)</span>", html) == ["circle", "cross", "ring", "star"]
    assert '<th scope="colgroup" colspan="2">task 1</th>' in html


def test_where_runs_disagree_about_tasks_the_columns_have_none_above_them(make_run):
    other = (("circle", "ring"), ("cross", "star"))
    html = crowd.class_part(settings_of(read_runs([make_run("a"), make_run("b", seed=1, task_classes=other)])), METRIC)
    assert "colgroup" not in html


def test_it_is_said_which_seed_stands_for_a_setting(settings, make_run):
    examples = Examples(("the truth", "pseudo_label, after task 2"), ("7",), ((Panel(b"", "a"), Panel(b"", "b")),))
    html = crowd.example_part(settings, examples, ["oracle"])
    assert "Of each setting one run is shown: that of seed 0 or 1." in html
    assert re.findall(r"<strong>(.*?)</strong>", html) == list(examples.columns)
    assert [run.title for run in crowd.one_of_each(settings)] == ["pseudo_label", "<i> [ORACLE]"]
    alone = settings_of(read_runs([make_run("alone")]))
    assert "one run is shown" not in crowd.example_part(alone, examples, [])


def test_no_log_is_said(settings):
    assert "<svg" in crowd.loss_part("x", settings)
    for setting in settings:
        for run in setting.runs:
            (run.folder / "metrics.jsonl").unlink()
    assert "No training loss was logged" in crowd.loss_part("x", settings)
