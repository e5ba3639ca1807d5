"""Incremental metrics on one sequence of three tasks, every figure worked by hand."""

from __future__ import annotations

import pytest

from incdet.evaluation import incremental

MATRIX = [[0.8], [0.6, 0.7], [0.7, 0.5, 0.9]]


def test_forgetting_is_measured_from_the_best_earlier_value():
    rising = [[0.5], [0.8, 0.7], [0.6, 0.6, 0.9]]
    assert incremental.forgetting(rising) == pytest.approx(((0.8 - 0.6) + (0.7 - 0.6)) / 2)
    assert incremental.backward_transfer(rising) == pytest.approx(((0.6 - 0.5) + (0.6 - 0.7)) / 2)


def test_matrix_metrics():
    assert incremental.forgetting(MATRIX) == pytest.approx((0.1 + 0.2) / 2)
    assert incremental.backward_transfer(MATRIX) == pytest.approx((-0.1 - 0.2) / 2)
    assert incremental.forgetting_percentage_points(MATRIX) == pytest.approx(0.1)


def test_forward_transfer_is_measured_from_what_each_task_reaches_alone():
    assert incremental.forward_transfer(MATRIX, [0.2, 0.6, 1.0]) == pytest.approx(((0.7 - 0.6) + (0.9 - 1.0)) / 2)
    assert incremental.forward_transfer([[0.8], [0.6, 0.7]], [None, 0.4]) == pytest.approx(0.3)  # task 1 has no before
    assert incremental.forward_transfer(MATRIX, [0.2, 0.6, None]) is None
    assert incremental.forward_transfer([[0.8]], [0.2]) is None


def test_negative_forgetting_is_kept():
    assert incremental.forgetting([[0.5], [0.75, 0.5]]) == -0.25


@pytest.mark.parametrize("metric", [incremental.forgetting, incremental.backward_transfer])
def test_unknown_entries_make_the_mean_unknown(metric):
    assert metric([[None], [0.5, 0.5]]) is None
    assert metric([[0.5], [None, 0.5]]) is None
    assert metric([[0.5], [0.5, None]]) == 0  # the last task's own classes are not asked for


def test_one_task_has_forgotten_nothing_that_could_be_measured():
    for metric in (incremental.forgetting, incremental.backward_transfer, incremental.forgetting_percentage_points):
        assert metric([[0.5]]) is None


def test_groups_weigh_classes_not_groups():
    ap = {"a": 0.2, "b": 0.4, "c": 0.9, "d": None}
    assert incremental.group_means(ap, ["a", "b"], ["c"]) == {
        "old": pytest.approx(0.3),
        "new": 0.9,
        "seen": pytest.approx(0.5),
    }
    assert incremental.group_means(ap, [], ["d"]) == {"old": None, "new": None, "seen": None}
    assert incremental.mean_ap(ap, ["c", "d"]) == 0.9  # no test object, no vote


def test_average_incremental():
    assert incremental.average_incremental([0.8, 0.65, 0.7]) == pytest.approx(2.15 / 3)
    assert incremental.average_incremental([0.8, None]) is None
    assert incremental.average_incremental([]) is None


def test_average_accuracy_weighs_tasks():
    assert incremental.average_accuracy(MATRIX) == pytest.approx((0.7 + 0.5 + 0.9) / 3)
    assert incremental.average_accuracy([[0.8]]) == 0.8
    assert incremental.average_accuracy([[0.8], [None, 0.7]]) is None


def test_gaps_as_printed_for_erd_on_coco():
    assert incremental.absolute_gap(0.545, 0.530) == pytest.approx(0.015)
    assert incremental.relative_gap(0.545, 0.530) == pytest.approx(0.02752, abs=1e-5)
    assert incremental.relative_gap(0.0, 0.0) is None
    assert incremental.absolute_gap(None, 0.5) is None


def test_omega():
    assert incremental.omega([0.8, 0.6], [0.8, 0.75]) == pytest.approx((1 + 0.8) / 2)
    assert incremental.omega([0.8, None], [0.8, 0.75]) is None
    assert incremental.omega([0.8], [0.0]) is None


def test_relative_deficit():
    joint, ours = {"a": 0.8, "b": 0.5, "c": 0.0, "d": None}, {"a": 0.4, "b": 0.5, "c": 0.1, "d": None}
    assert incremental.relative_deficit(joint, ours, ["a", "b"]) == pytest.approx(25)
    assert incremental.relative_deficit(joint, ours, ["a", "c", "d"]) == pytest.approx(50)
    assert incremental.relative_deficit(joint, ours, ["c"]) is None


def test_means_of_the_two_groups():
    assert incremental.harmonic_mean(0.6, 0.3) == pytest.approx(0.4)
    assert incremental.harmonic_mean(0.0, 0.0) == 0
    assert incremental.harmonic_mean(None, 0.5) is None
    assert incremental.group_average(0.6, 0.3) == pytest.approx(0.45)
    assert incremental.group_average(0.6, None) is None
