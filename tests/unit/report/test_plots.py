"""Figures: they carry the runs' numbers and names, in both formats."""

import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest

from incdet.report import plots
from incdet.report.runs import read_metrics, read_runs


@pytest.fixture
def runs(make_run):
    return read_runs(
        [
            make_run("a", matrix=((0.74,), (0.70, 0.88))),
            make_run("b", methods=["<b> $x$ & co"], matrix=((0.74,), (0.0, 0.85)), stamps=["oracle"]),
            make_run("c", methods=["joint"], finished=1),
        ]
    )


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg.decode())
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def all_plots(runs, fmt):
    yield plots.class_bars(runs, fmt=fmt)
    yield plots.ap_over_tasks(runs, fmt=fmt)
    yield plots.loss_curve(runs, [read_metrics(run.folder) for run in runs], fmt=fmt)


def test_every_comparison_names_every_run_and_its_stamp(runs):
    for svg in all_plots(runs, "svg"):
        written = texts(svg)
        assert "pseudo_label" in written
        assert "<b> $x$ & co [ORACLE]" in written
        assert "joint" in written


def test_png_is_png_and_equal_input_gives_equal_bytes(runs):
    assert all(png.startswith(b"\x89PNG") for png in all_plots(runs, "png"))
    assert list(all_plots(runs, "svg")) == list(all_plots(runs, "svg"))


def test_class_bars_name_each_learned_class_once(runs):
    written = texts(plots.class_bars(runs))
    assert [written.count(name) for name in ("circle", "cross", "ring", "star")] == [1, 1, 1, 1]
    assert "ring" not in texts(plots.class_bars(runs[2:]))  # killed before it was learned


def test_the_heat_map_shows_the_matrix_in_percent(runs):
    matrix = runs[0].matrix("voc_area_50")
    expected = [f"{100 * value:.0f}" for row in matrix for value in row]
    written = texts(plots.forgetting_heatmap(runs[0]))
    assert all(value in written for value in expected)


def test_an_undefined_ap_leaves_a_gap(runs):
    runs[0].tasks[1]["ap"]["voc_area_50"]["circle"] = None
    runs[0].results["matrix"]["voc_area_50"][1][0] = None
    assert "nan" not in " ".join(texts(plots.forgetting_heatmap(runs[0])))
    assert texts(plots.class_bars(runs))


def test_the_loss_is_counted_through_the_tasks():
    rows = [
        {"task": 1, "iteration": 20, "loss": 2.0},
        {"task": 1, "iteration": 40, "loss": 1.0},
        {"task": 1, "iteration": 40, "ap": 0.5},  # a row of another kind
        {"task": 2, "iteration": 20, "loss": 3.0},
    ]
    assert plots.loss_series(rows) == ([20, 40, 60], [2.0, 1.0, 3.0], [40, 60])
    assert plots.loss_series([]) == ([], [], [])


def test_global_style_is_left_alone(runs):
    before = dict(mpl.rcParams)
    list(all_plots(runs, "svg"))
    assert dict(mpl.rcParams) == before


def test_a_sweep_shows_its_trials_and_says_which_diverged():
    written = texts(plots.sweep_curve({0: 0.2, 1: None, 2: 0.4}, "all AP50", fmt="svg"))
    assert {"trial", "best so far", "diverged", "all AP50, %"} <= set(written)
    assert "diverged" not in texts(plots.sweep_curve({0: 0.2, 1: 0.1}, "all AP50", fmt="svg"))
    assert plots.sweep_curve({0: None}, "all AP50").startswith(b"\x89PNG")
