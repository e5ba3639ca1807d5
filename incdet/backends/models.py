"""Finding the file that a user means by a file, a task's folder or a run's folder."""

from __future__ import annotations

from pathlib import Path

from incdet.errors import CheckpointError

MODEL_FILE = "model.safetensors"


def find_model(path: Path, given_by: str = "--model") -> Path:
    """The ``model.safetensors`` of a path: the file itself, the one in the folder, or that of a run's last task.

    Args:
        path: to look at.
        given_by: what the messages call the place where it was set.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            f"{given_by} {path} does not exist. Give a {MODEL_FILE}, a task's folder or a run's folder."
        )
    own = path / MODEL_FILE
    of_tasks = {int(file.parent.name.removeprefix("task_")): file for file in path.glob(f"task_[0-9]*/{MODEL_FILE}")}
    if own.exists():
        return own
    if of_tasks:
        return of_tasks[max(of_tasks)]
    raise CheckpointError(
        f"{given_by} {path} holds neither {MODEL_FILE} nor task_<t>/{MODEL_FILE}: no task of that run was finished, or "
        "it is not a folder that incdet wrote."
    )


def weights_file(source: str | Path) -> Path:
    """The file that ``MODEL.WEIGHTS`` means; it need not exist.

    Raises:
        CheckpointError: it is a folder without a model.
    """
    path = Path(source).expanduser()
    return find_model(path, "MODEL.WEIGHTS") if path.is_dir() else path
