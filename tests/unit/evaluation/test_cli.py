"""Scoring a predictions file from the command line."""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from incdet.errors import IncdetError
from incdet.evaluation.cli import add_arguments, run
from incdet.evaluation.results import read_task_result

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools" / "evaluate.py"
SHARED = ROOT.parent / "shared" / "data" / "voc2012_mini"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000064000000640100000000480b"  # header of a 100 x 100 picture
)


@pytest.fixture
def files(tmp_path):
    """A COCO set of two images with a zebra and an ant, and the detections of a detector that mixes them up once."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("one.png", "two.png"):
        (images / name).write_bytes(PNG)
    content = {
        "images": [{"id": i, "file_name": n, "width": 100, "height": 100} for i, n in ((1, "one.png"), (2, "two.png"))],
        "categories": [{"id": 5, "name": "zebra"}, {"id": 9, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 9, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0},
        ],
    }
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps(content))
    box = {"bbox": [0, 0, 50, 50]}
    entries = [
        box | {"image_id": 1, "category_id": 5, "score": 0.9},
        box | {"image_id": 1, "category_id": 9, "score": 0.8},
        box | {"image_id": 2, "category_id": 9, "score": 0.7},
    ]
    found = tmp_path / "found.json"
    found.write_text(json.dumps(entries))
    return [str(found), "--data", f"coco:{annotations}:{images}", "--categories", str(annotations)]


def evaluate(*options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(option) for option in options]))


def test_all_classes_at_once(files, tmp_path, capsys):
    result = evaluate(*files, "--out", tmp_path / "result.json")
    assert result["ap"]["voc_area_50"] == {"zebra": 1.0, "ant": 0.5}
    assert read_task_result(tmp_path / "result.json") == result
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:2] == ["class", "voc_area_50"]
    assert ["ant", "50.0"] in [row[:2] for row in rows]
    assert ["seen", "75.0"] in [row[:2] for row in rows]
    assert ["old", "–"] in [row[:2] for row in rows]


def test_old_and_new(files):
    result = evaluate(*files, "--split", "1+1")  # alphabetical: first the ant, then the zebra
    assert result["groups"]["voc_area_50"] == {"old": 0.5, "new": 1.0, "seen": 0.75}
    assert result["protocol"]["classes"] == ["ant", "zebra"]
    for option in (["--order", "id"], ["--listed", "zebra, ant"]):
        reverse = evaluate(*files, "--split", "1+1", *option)
        assert reverse["groups"]["voc_area_50"] == {"old": 1.0, "new": 0.5, "seen": 0.75}


def test_an_earlier_task(files):
    assert evaluate(*files, "--split", "1+1", "--task", 1)["ap"]["voc_area_50"] == {"ant": 0.5}
    with pytest.raises(IncdetError, match="tasks 1 to 2"):
        evaluate(*files, "--split", "1+1", "--task", 3)


def test_convention_is_recorded(files):
    assert evaluate(*files, "--convention", "detectron2")["voc_convention"] == "detectron2"


def test_the_tool_prints_errors_without_a_traceback(files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *files[:3]])  # without --categories the ids 5 and 9 are unknown
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(TOOL), run_name="__main__")
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "category_id 5" in printed.err
    assert printed.out == ""


def test_scoring_needs_no_model(files):
    code = (
        "import contextlib, runpy, sys\n"
        f"sys.argv = ['evaluate.py', *{files!r}]\n"
        f"with contextlib.suppress(SystemExit): runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
        "print('models:', *[name for name in sys.modules if name.startswith('torchvision')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "zebra" in done.stdout
    assert done.stdout.splitlines()[-1] == "models:"


@pytest.mark.shared_data
def test_the_truth_as_predictions_of_real_photographs(tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"no photographs at {SHARED}")
    from incdet.data.catalog import load_dataset

    data = f"voc:{SHARED}:test"
    entries = [
        {"image_id": i.image_id, "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1.0}
        for i in load_dataset(data).images
        for (x1, y1, x2, y2), label in zip(i.boxes.tolist(), i.labels, strict=True)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(entries))
    result = evaluate(tmp_path / "truth.json", "--data", data, "--split", "15+5", "--order", "id")
    for metric, groups in result["groups"].items():
        assert groups == pytest.approx({"old": 1.0, "new": 1.0, "seen": 1.0}), metric
