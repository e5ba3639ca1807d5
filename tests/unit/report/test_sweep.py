"""The table of a sweep's trials."""

import csv

from incdet.report.sweep import TrialRow, best_of, trials_csv, trials_markdown


def row(number, value, old, new, mean):
    scores = {"old": old, "new": new, "all": (old + new) / 2 if old is not None else None, "harmonic_mean": mean}
    return TrialRow(number, {"SOLVER.BASE_LR": value}, scores)


ROWS = [
    row(0, 0.01, 0.2, 0.4, 0.25),
    row(1, 0.3, None, None, None),
    row(2, 1 / 3, 0.5, 0.5, 0.5),
    row(3, 2, 0.5, 0.5, 0.5),
]


def test_the_best_is_the_first_with_the_highest_score():
    assert best_of(ROWS, "harmonic_mean") is ROWS[2]
    assert best_of(ROWS[1:2], "harmonic_mean") is None


def test_the_table_is_in_order_of_the_objective_and_in_percent():
    assert trials_markdown(ROWS, "harmonic_mean").splitlines() == [
        "| trial | SOLVER.BASE_LR | old | new | all | harmonic_mean |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 2 | 0.3333 | 50.0 | 50.0 | 50.0 | 50.0 |",
        "| 3 | 2 | 50.0 | 50.0 | 50.0 | 50.0 |",
        "| 0 | 0.01 | 20.0 | 40.0 | 30.0 | 25.0 |",
        "| 1 | 0.3 | diverged | diverged | diverged | diverged |",
    ]


def test_an_objective_that_is_a_group_has_one_column():
    assert trials_markdown(ROWS, "all").splitlines()[0] == "| trial | SOLVER.BASE_LR | old | new | all |"


def test_the_csv_is_unrounded_and_in_the_order_of_the_trials():
    header, *lines = csv.reader(trials_csv(ROWS, "all").splitlines())
    assert header == ["trial", "SOLVER.BASE_LR", "old", "new", "all"]
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert lines[1] == ["1", "0.3", "", "", ""]
    assert float(lines[2][1]) == 1 / 3
