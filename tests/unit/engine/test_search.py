"""A search that is killed goes on as the unbroken one would have."""

import builtins

import pytest

from incdet.config.space import Choices, Range
from incdet.engine.search import FILE, Search
from incdet.errors import CheckpointError, ConfigError

pytest.importorskip("optuna")

SPACE = {
    "SOLVER.BASE_LR": Range(1e-4, 1.0, log=True),
    "SOLVER.MAX_ITER": Range(1, 9),
    "SOLVER.STEPS": Choices(((3, 4), (5,))),
}
QUESTION = {"objective": "all", "STEPS": (3, 4)}


def open_search(folder, seed=0, question=QUESTION):
    return Search(folder, SPACE, seed, question)


def score(values):
    return -abs(values["SOLVER.BASE_LR"] - 0.01)


def learn(search, trials):
    while len(search.finished()) < trials:
        trial = search.next_trial()
        search.tell(trial, score(trial.values))
    return search.finished()


def test_values_lie_in_the_space_and_keep_its_types(tmp_path):
    for trial in learn(open_search(tmp_path), 5):
        assert 1e-4 <= trial.values["SOLVER.BASE_LR"] <= 1
        assert isinstance(trial.values["SOLVER.MAX_ITER"], int)
        assert trial.values["SOLVER.STEPS"] in ("(3, 4)", "(5,)")  # text, as on a command line


def test_a_trial_that_was_cut_short_comes_again_and_the_search_goes_on_as_if_unbroken(tmp_path):
    whole = learn(open_search(tmp_path / "whole"), 13)  # more than the ten that are drawn blindly
    search = open_search(tmp_path / "killed")
    learn(search, 4)
    begun = search.next_trial()
    again = open_search(tmp_path / "killed").next_trial()
    assert again == begun
    assert learn(open_search(tmp_path / "killed"), 13) == whole
    assert learn(open_search(tmp_path / "other", seed=1), 2) != whole[:2]


def test_proposed_values_are_tried_first_and_once(tmp_path):
    values = {"SOLVER.BASE_LR": 0.5, "SOLVER.MAX_ITER": 3, "SOLVER.STEPS": (5,)}
    for _ in range(2):
        search = open_search(tmp_path)
        search.propose(values)
    first, second = learn(search, 2)
    assert first.values == {**values, "SOLVER.STEPS": "(5,)"}
    assert second.values["SOLVER.BASE_LR"] != 0.5


def test_a_trial_that_diverged_counts_and_has_no_score(tmp_path):
    search = open_search(tmp_path)
    search.tell(search.next_trial(), None)
    learn(search, 2)
    assert [trial.score is None for trial in open_search(tmp_path).finished()] == [True, False]


def test_a_folder_with_another_sweep_is_refused(tmp_path):
    open_search(tmp_path)
    open_search(tmp_path, question=dict(QUESTION))
    with pytest.raises(ConfigError, match=r"objective: now 'old', then 'all'\nTake another folder"):
        open_search(tmp_path, question={**QUESTION, "objective": "old"})


def test_a_damaged_study_is_one_clear_error(tmp_path):
    (tmp_path / FILE).write_text("this is no study, and long enough to be none" * 50)
    with pytest.raises(CheckpointError, match=r"study\.db cannot be used.*Delete it"):
        open_search(tmp_path)


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest):
        if name == "optuna":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"incdet\[sweep\]"):
        open_search(tmp_path)
