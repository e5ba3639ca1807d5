"""What the command line says: help with examples, one clear line for each mistake, and how to go on after Ctrl-C."""

from pathlib import Path

import pytest

from incdet.cli import COMMANDS, main
from incdet.cli import config as config_command
from incdet.data.shapes import write_shapes


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train=12, test=2, size=32)
    return root


@pytest.fixture
def refuse(tmp_path, datasets, capsys):
    """Runs ``incdet train`` on a YAML text and returns the one line that it says to a mistake."""

    def run(text: str, *overrides: str) -> str:
        path = tmp_path / "wrong.yaml"
        path.write_text(text)
        keys = ["DATASETS.ROOT", str(datasets), "OUTPUT_DIR", str(tmp_path / "run"), *overrides]
        assert main(["train", "--config-file", str(path), *keys]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert not list(tmp_path.glob("run/task_*"))
        error = said.err.splitlines()[-1]
        assert error.startswith("error: ")
        assert "Traceback" not in said.err
        return error

    return run


def test_misspelt_key_names_the_nearest_and_the_file(refuse):
    error = refuse("SOLVER: {BASE_LEARNING_RATE: 0.1, MAX_ITR: 5}")
    assert "BASE_LEARNING_RATE" in error
    assert "wrong.yaml" in error
    error = refuse("SOLVER: {MAX_ITR: 5}")
    assert "Did you mean SOLVER.MAX_ITER?" in error


def test_misspelt_key_on_the_command_line(refuse):
    error = refuse("", "SOLVER.MAX_ITR", "5")
    assert "on the command line" in error
    assert "Did you mean SOLVER.MAX_ITER?" in error


def test_value_of_another_type(refuse):
    error = refuse("SOLVER: {MAX_ITER: many}")
    assert "SOLVER.MAX_ITER expects int" in error
    assert "'many'" in error


def test_unsafe_yaml_tag_runs_nothing(refuse, tmp_path):
    target = tmp_path / "executed"
    error = refuse(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {target}']")
    assert "not plain YAML" in error
    assert not target.exists()


def test_cycle_of_bases(refuse):
    assert "form a cycle" in refuse("_BASE_: wrong.yaml")


def test_missing_config_file(tmp_path, capsys):
    assert main(["train", "--config-file", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_split_that_does_not_sum_to_the_classes(refuse):
    error = refuse("TASKS: {SPLIT: 15+3}")
    assert "15+3" in error
    assert "18" in error
    assert "20" in error


def test_unknown_method_names_the_nearest(refuse):
    error = refuse("METHODS: [pseudo_lable]")
    assert "Did you mean 'pseudo_label'?" in error
    assert "finetune" in error


def test_methods_that_exclude_each_other(refuse):
    assert "cannot be combined" in refuse("METHODS: [joint, replay]")


def test_missing_data_says_how_to_get_them(refuse, tmp_path):
    error = refuse("", "DATASETS.ROOT", str(tmp_path / "nowhere"))
    assert "does not exist" in error
    assert "make_shapes.py" in error


def test_unknown_data_names_the_nearest(refuse):
    assert "Did you mean 'shapes_train'?" in refuse("DATASETS: {TRAIN: shape_train}")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("BACKEND: torchvsion", "BACKEND"),
        ("SOLVER: {PRECISION: half}", "SOLVER.PRECISION"),
    ],
)
def test_value_that_is_none_of_the_known(refuse, text, named):
    assert f"{named}: expected one of" in refuse(text)


def test_task_without_images(capsys, tmp_path, datasets):
    """Twelve pictures do not show all of twenty classes."""
    keys = ["DATASETS.ROOT", str(datasets), "OUTPUT_DIR", str(tmp_path / "run"), "TASKS.SPLIT", "+".join(["1"] * 20)]
    assert main(["train", *keys]) == 2
    error = capsys.readouterr().err
    assert "has nothing to learn from" in error
    assert not list(tmp_path.rglob("*.safetensors")), "found out before the first task is learned"


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: incdet " + command in text
    examples = text.partition("example")[2]
    assert f"incdet {command}" in examples


@pytest.mark.parametrize("argv", [[], ["trian"]])
def test_no_command_and_an_unknown_one(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: incdet" in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(config_command, "run", interrupted)
    assert main(["config"]) == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted")
    assert "--resume" in said


def test_bug_is_not_hidden(monkeypatch):
    def broken(_):
        raise ZeroDivisionError

    monkeypatch.setattr(config_command, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["config"])
