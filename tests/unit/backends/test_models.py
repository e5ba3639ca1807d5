"""Which model a path means."""

import pytest

from incdet.backends.models import MODEL_FILE, find_model
from incdet.errors import CheckpointError


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_a_file_a_task_and_the_last_finished_task_of_a_run(tmp_path):
    first, tenth = make(tmp_path / "task_1" / MODEL_FILE), make(tmp_path / "task_10" / MODEL_FILE)
    (tmp_path / "task_11").mkdir()  # begun, not finished
    make(tmp_path / "task_9" / MODEL_FILE)
    assert find_model(first) == first
    assert find_model(tmp_path / "task_1") == first
    assert find_model(tmp_path) == tenth


def test_the_result_of_add_classes_comes_before_its_tasks(tmp_path):
    make(tmp_path / "task_2" / MODEL_FILE)
    assert find_model(make(tmp_path / MODEL_FILE).parent) == tmp_path / MODEL_FILE


def test_a_folder_without_a_model_and_a_missing_path_are_refused(tmp_path):
    (tmp_path / "task_1").mkdir()
    with pytest.raises(CheckpointError, match="no task of that run was finished"):
        find_model(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        find_model(tmp_path / "typo")
