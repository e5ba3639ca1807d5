"""What a run is worth beside joint training and beside tasks that were learned alone, worked by hand."""

import pytest

from incdet.errors import DataError
from incdet.evaluation.references import against_independent, against_joint
from incdet.evaluation.results import METRICS, run_results

TASKS = [["a", "b"], ["c"], ["d"]]
OURS = [{"a": 0.8, "b": 0.6}, {"a": 0.6, "b": 0.6, "c": 0.9}, {"a": 0.4, "b": 0.6, "c": 0.6, "d": 0.8}]
JOINT = [{"a": 1.0, "b": 1.0}, {"a": 0.9, "b": 0.9, "c": 0.1}, {"a": 0.8, "b": 0.8, "c": 1.0, "d": 0.8}]
ALONE = [{"a": 0.8, "b": 0.6}, {"a": 0.1, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.2, "d": 0.5}]


def run(steps, name="run", test="scenes"):
    protocol = {"tasks": TASKS, "test": {"name": test}}
    results = [
        {
            "schema": 1, "task": number, "stamps": [], "groups": {}, "ap": dict.fromkeys(METRICS, ap),
            "by_task": {key: [sum(ap[c] for c in task) / len(task) for task in TASKS[:number]] for key in METRICS},
        }
        for number, ap in enumerate(steps, start=1)
    ]  # fmt: skip
    return run_results(name, [], protocol, results)


def test_against_joint_training_of_all_classes():
    """The joint model after the last task is meant, not those that it was on the way."""
    found = against_joint(run(OURS), run(JOINT))
    assert set(found) == set(METRICS)
    assert found["coco"] == pytest.approx(
        {
            "joint": 0.85, "abs_gap": 0.25, "rel_gap": 0.25 / 0.85,
            "omega_all": (0.7 / 0.8 + 0.7 / (2.6 / 3) + 0.6 / 0.85) / 3,
            "omega_base": (0.7 + 0.6 + 0.5) / 0.8 / 3,
            "omega_new": (0.7 / 0.8 + 0.9 / 1.0 + 0.8 / 0.8) / 3,
            "rsd": 100 * (0.5 + 0.25 + 0.4) / 3, "rpd": 0.0,
        }
    )  # fmt: skip


def test_against_tasks_that_were_learned_alone():
    """0.9 where the task alone reached 1.0, and 0.8 where it reached 0.5; the first task has nothing before it."""
    assert against_independent(run(OURS), run(ALONE))["voc_area_75"] == pytest.approx({"fwt": (-0.1 + 0.3) / 2})


def test_a_run_that_is_half_done_is_measured_as_far_as_it_came():
    half = run(OURS[:2])
    assert against_joint(half, run(JOINT))["coco"]["omega_base"] == pytest.approx((0.7 + 0.6) / 0.8 / 2)
    assert against_independent(half, run(ALONE))["coco"] == pytest.approx({"fwt": -0.1})
    assert against_independent(run(OURS[:1]), run(ALONE))["coco"] == {"fwt": None}
    assert against_joint(run(OURS[:1]), run(JOINT))["coco"]["rsd"] is None


@pytest.mark.parametrize("against", [against_joint, against_independent])
def test_what_cannot_be_compared(against):
    with pytest.raises(DataError, match="'slow' has not learned d yet"):
        against(run(OURS), run(JOINT[:2], "slow"))
    with pytest.raises(DataError, match=r"'away' was tested on .*other.*, 'run' on .*scenes"):
        against(run(OURS), run(JOINT, "away", test="other"))
