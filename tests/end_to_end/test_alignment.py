"""ELI in a run, and the study of aligners on runs of any kind."""

import json

import pytest
from safetensors.torch import load_file

from incdet.cli import main
from incdet.errors import IncdetError
from incdet.evaluation.results import read_task_result
from incdet.report.alignment import alignment_table, read_study


def readings(study) -> dict[tuple[str, str], dict]:
    return {(reading["aligner"], reading["gate"]): reading for reading in study["readings"]}


def test_a_study_needs_no_method_and_begins_from_the_runs_own_result(train, capsys):
    folder = train("run")
    assert main(["alignment", str(folder), "--presets", "detection_19+1", "--latents", "100"]) == 0
    printed = capsys.readouterr().out
    study = read_study(folder / "task_2" / "alignment.json")
    result = read_task_result(folder / "task_2" / "result.json")
    found = readings(study)
    assert found["", ""]["groups"] == result["groups"]
    assert found["", ""]["ap"]["voc_area_50"] == result["ap"]["voc_area_50"]
    plain = {"predicted_old", "not_new", "all", "oracle"}
    assert {gate for aligner, gate in found if aligner == "ridge"} == plain
    assert {gate for aligner, gate in found if aligner == "energy (detection_19+1)"} == plain | {"energy"}
    for (aligner, gate), reading in found.items():
        assert reading["stamps"] == (["oracle"] if gate == "oracle" else [])
        assert reading["moved"] == 0 or aligner
    everything, not_new, old = (found["ridge", gate]["moved"] for gate in ("all", "not_new", "predicted_old"))
    assert everything >= not_new >= old
    assert study["latents"] == 100
    assert study["relative_drift"]["objects"] > 0
    assert "oracle [ORACLE]" in printed
    page = (folder / "report.html").read_text()
    assert "What aligning features is worth" in page
    assert "ORACLE" in page

    before = (folder / "task_2" / "alignment.json").stat().st_mtime_ns
    assert main(["alignment", str(folder)]) == 0
    assert (folder / "task_2" / "alignment.json").stat().st_mtime_ns == before


def test_a_study_of_the_first_task_or_of_no_run_is_refused(train, tmp_path, capsys):
    folder = train("run", "--task", "1")
    assert main(["alignment", str(folder), "--task", "1"]) == 2
    assert "aligning needs a task before it, so 2 to 2; got 1" in capsys.readouterr().err
    assert main(["alignment", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_eli_changes_what_the_same_weights_find_and_its_result_repeats(train, config, capsys):
    """Mean shift behind the gate `all`: the same training as fine-tuning, another reading of it."""
    options = {"METHOD__ELI__ALIGNER": "mean_shift", "METHOD__ELI__GATE": "all"}
    plain, aligned = train("plain"), train("aligned", METHODS="eli", **options)
    models = [(folder / "task_2" / "model.safetensors") for folder in (plain, aligned)]
    one, other = map(load_file, models)
    assert all(one[name].equal(other[name]) for name in one)
    first, second = (read_task_result(folder / "task_2" / "result.json") for folder in (plain, aligned))
    assert first["groups"] != second["groups"]
    assert second["extra"]["alignment"]["aligner"] == "mean_shift"
    predictions = (aligned / "task_2" / "predictions.json").read_bytes()
    keys = ["OUTPUT_DIR", str(aligned), "METHODS", "eli"]
    keys += [word for key, value in options.items() for word in (key.replace("__", "."), value)]
    assert main(["train", "--config-file", str(config), "--eval-only", *keys]) == 0
    assert (aligned / "task_2" / "predictions.json").read_bytes() == predictions


@pytest.mark.parametrize("damage", ["{", "[]", '{"task": 2}'])
def test_a_damaged_study_says_what_to_do(tmp_path, damage):
    path = tmp_path / "alignment.json"
    path.write_text(damage)
    with pytest.raises(IncdetError, match=r"alignment\.json"):
        read_study(path)


def test_the_table_averages_over_studies(tmp_path):
    def study(old: float) -> dict:
        groups = {"voc_area_50": {"old": old, "new": 0.5, "seen": None}}
        row = {
            "aligner": "ridge",
            "gate": "oracle",
            "stamps": ["oracle"],
            "groups": groups,
            "ap": {"voc_area_50": {}},
            "moved": 10,
            "seconds": 1.0,
        }
        return json.loads(json.dumps({"readings": [row]}))

    table = alignment_table([study(0.2), study(0.4)])
    assert "| ridge | oracle [ORACLE] | 30.0 ± 14.1 | 50.0 ± 0.0 | – | 10 | 1.00 |" in table
