"""The tool that prints a merged configuration."""

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "show_config.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False)


def test_it_prints_yaml_and_where_a_key_was_set(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("OUTPUT_DIR: elsewhere\n")
    done = run("--config-file", str(path), "SOLVER.BASE_LR", "0.125")
    assert done.returncode == 0, done.stderr
    merged = yaml.safe_load(done.stdout)
    assert merged["OUTPUT_DIR"] == "elsewhere"
    assert merged["SOLVER"]["BASE_LR"] == 0.125
    assert f"set in {path}" in done.stdout
    assert "set on the command line" in done.stdout


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    done = run("--config-file", str(tmp_path / "absent.yaml"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: The config file")
    assert done.stderr.count("\n") == 1
