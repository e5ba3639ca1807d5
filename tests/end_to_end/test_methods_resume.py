"""Every method: a run that is killed again and again, wherever it keeps something, ends as the unbroken one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from comparison import differences

from incdet.engine.checkpoint import TaskState
from incdet.engine.stream import Run
from incdet.methods import method_names

# The bounds are not defined by their resuming; what is left is what they share with every other method.
NAMES = sorted(set(method_names("detection")) - {"finetune", "joint"})
FEW = {"SOLVER__MAX_ITER": 4, "NEXT_TASKS__SOLVER__MAX_ITER": 3, "SOLVER__CHECKPOINT_PERIOD": 1}
# Short stages and fits, and small memories; a detector of four iterations is sure of nothing.
SETTINGS = {
    "abr": {"METHOD__ABR__MIN_SIZE": 8, "METHOD__ABR__BUDGET": 40},
    "bpf": {"METHOD__BPF__INTERIM_ITERATIONS": 3, "METHOD__BPF__SCORE_ROI": 0.08},
    "agem": {"METHOD__AGEM__IMAGES_PER_CLASS": 2},
    "distill_retrospect": {
        "METHOD__DISTILL_RETROSPECT__IMAGES_PER_CLASS": 2,
        "METHOD__DISTILL_RETROSPECT__EXPERT_ITERATIONS": 3,
    },
    "eli": {"METHOD__ELI__ITERATIONS": 3},
    "ewc": {"METHOD__EWC__IMAGES": 4},
    "gem": {"METHOD__GEM__IMAGES_PER_CLASS": 2},
    "gpm": {"METHOD__GPM__IMAGES": 8},
    "frozen_head_distill": {
        "METHOD__FROZEN_HEAD_DISTILL__INTERIM": True,
        "METHOD__FROZEN_HEAD_DISTILL__INTERIM_ITERATIONS": 3,
    },
    "iod": {"METHOD__IOD__GAMMA": 2, "METHOD__IOD__FINETUNE_ITER": 3},
    "lwf": {"METHOD__LWF__WARMUP_ITER": 3},
    "mas": {"METHOD__MAS__IMAGES": 4},
    "nsgp": {"METHOD__NSGP__IMAGES": 8},
    "prototypes": {"METHOD__PROTOTYPES__ITERATIONS": 3},
    "replay": {"METHOD__REPLAY__IMAGES_PER_CLASS": 2},
}
STAGE_BEFORE = {
    "bpf": "interim",
    "distill_retrospect": "interim",
    "frozen_head_distill": "interim",
    "lwf": "warmup",
}  # the task's own training
STAGE_AFTER = {"iod": "finetune"}

Interrupt = Callable[[pytest.MonkeyPatch], None]


def in_training(folder: str) -> Interrupt:
    """After two steps of the task or stage in ``folder``, of which one is in its state."""
    original = TaskState.save

    def save(state: TaskState, path: Path, iteration: int, seconds: float) -> None:
        if path.parent.name == folder and iteration == 2:
            raise KeyboardInterrupt
        original(state, path, iteration, seconds)

    return lambda patch: patch.setattr(TaskState, "save", save)


def before(moment: str) -> Interrupt:
    """Before the second task's model is kept (``_save_model``), or between its end and its test (``_test``)."""
    original = getattr(Run, moment)

    def stop(run: Run, *arguments: object) -> None:
        if (run.folder / "task_1" / "result.json").exists():
            raise KeyboardInterrupt
        original(run, *arguments)

    return lambda patch: patch.setattr(Run, moment, stop)


def moments(name: str) -> list[Interrupt]:
    """In the order in which a task comes to them."""
    folders = [STAGE_BEFORE.get(name), "task_2", STAGE_AFTER.get(name)]
    return [*(in_training(folder) for folder in folders if folder), before("_save_model"), before("_test")]


@pytest.fixture(scope="module")
def first_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first_tasks")


@pytest.mark.parametrize("name", NAMES)
def test_run_killed_at_every_moment_ends_to_the_bit(train, monkeypatch, first_tasks, name):
    settings = FEW | SETTINGS.get(name, {}) | {"FIRST_TASK_CACHE": first_tasks}
    plain = train("plain", METHODS="finetune", **settings)  # whichever test is the first trains the shared first task
    whole = train("whole", METHODS=name, **settings)
    kept = {"model.safetensors", "aligner.safetensors"}  # ELI changes what reads the model, not the model
    assert kept & {Path(file).name for file in differences(plain, whole)}, "the method did nothing"
    for interrupt in moments(name):
        with monkeypatch.context() as patch:
            interrupt(patch)
            folder = train("run", "--resume", expect=130, METHODS=name, **settings)
    train("run", "--resume", METHODS=name, **settings)
    assert differences(whole, folder) == []
