"""Small panels: every setting has one, with its stamp and its numbers, and few bytes."""

import math
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest

from incdet.report import multiples
from incdet.report.runs import read_metrics, read_runs
from incdet.report.settings import settings_of


@pytest.fixture
def settings(make_run):
    folders = [make_run(f"{i}_{seed}", name=f"m{i} $x$", seed=seed) for i in range(5) for seed in (0, 1)]
    stamped = make_run("s", name="a name that is much too long for the width of a panel", stamps=["oracle"])
    return settings_of(read_runs([*folders, stamped, make_run("k", methods=["joint"], finished=1)]))


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg.decode())
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def all_plots(settings, fmt):
    logged = {run.folder: read_metrics(run.folder) for setting in settings for run in setting.runs}
    yield multiples.tasks_of_each(settings, "voc_area_50", fmt)
    yield multiples.matrices_of_each(settings, "voc_area_50", fmt)
    yield multiples.losses_of_each(settings, logged, fmt)


def test_every_setting_has_a_panel_under_its_whole_name(settings):
    for svg in all_plots(settings, "svg"):
        written = texts(svg)
        assert [written.count(f"m{i} $x$") for i in range(5)] == [1] * 5
        assert "joint" in written
        assert "a name that is much too long for the width of a panel [ORACLE]" in " ".join(written)
        assert "nan" not in written


def test_png_is_png_and_equal_input_gives_equal_bytes_and_the_style_is_left_alone(settings):
    before = dict(mpl.rcParams)
    assert all(png.startswith(b"\x89PNG") for png in all_plots(settings, "png"))
    assert list(all_plots(settings, "svg")) == list(all_plots(settings, "svg"))
    assert dict(mpl.rcParams) == before


def test_the_matrix_is_that_of_the_settings_first_run(make_run):
    runs = read_runs([make_run("a", matrix=((0.9,), (0.31, 0.8))), make_run("b", seed=1, matrix=((0.9,), (0.6, 0.8)))])
    (setting,) = settings_of(runs)
    written = texts(multiples.matrices_of_each([setting], "voc_area_50"))
    shown, other = (f"{100 * run.matrix('voc_area_50')[1][0]:.0f}" for run in runs)
    assert shown in written
    assert other not in written


def test_a_long_log_is_thinned(settings):
    rows = [{"task": 1, "iteration": i, "loss": 2 + math.sin(i * i)} for i in range(1, 20_001)]
    logged = {run.folder: rows for setting in settings for run in setting.runs}
    assert len(multiples.losses_of_each(settings, logged)) < 150_000


def test_a_setting_without_a_log_has_an_empty_panel(settings):
    logged = {run.folder: [] for setting in settings for run in setting.runs}
    assert "joint" in texts(multiples.losses_of_each(settings, logged))
