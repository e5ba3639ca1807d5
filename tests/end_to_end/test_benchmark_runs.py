"""``incdet benchmark``: runs beside their references in one table; one that diverges does not take the others along."""

import csv
from pathlib import Path

import pytest

from incdet.cli import main
from incdet.data.digits import bundled_digits, write_digits

CONFIGS = Path(__file__).parents[2] / "configs/classification/digits/5+5"


@pytest.fixture
def benchmark(tmp_path):
    """Runs the command on configurations of the digits; returns its exit status and the folder of the runs."""
    write_digits(bundled_digits(), tmp_path / "data" / "digits")

    def run(*configs: Path, seeds: str = "0", expect: int = 0) -> Path:
        keys = ["DATASETS.ROOT", str(tmp_path / "data"), "SOLVER.MAX_ITER", "20"]
        files = [str(config) for config in configs]
        out = tmp_path / "out"
        assert main(["benchmark", *files, "--seeds", *seeds.split(), "--out", str(out), "--set", *keys]) == expect
        return out

    return run


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "table.csv").open() as file:
        return {row["methods"]: row for row in csv.DictReader(file)}


def own(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(f"_BASE_: {CONFIGS / 'finetune.yaml'}\nNAME: {name}\n{text}")
    return path


def test_joint_and_independent_runs_are_references(benchmark):
    out = benchmark(*(CONFIGS / f"{name}.yaml" for name in ("finetune", "joint", "independent")), seeds="0 1")
    rows = table(out)
    assert {row["runs"] for row in rows.values()} == {"2"}
    assert float(rows["finetune"]["fwt_top1_mean"]) == pytest.approx(
        float(rows["finetune"]["new_top1_mean"]) - float(rows["independent"]["new_top1_mean"])
    )
    assert float(rows["joint"]["omega_new_top1_mean"]) > float(rows["finetune"]["omega_base_top1_mean"])
    assert "FWT" in (out / "table.md").read_text()
    assert (out / "report.html").exists()
    models = list(out.glob("5+5/*/*/task_1/model.safetensors"))
    assert len({path.read_bytes() for path in models}) == 2, "one first task for each seed"


def test_a_run_that_diverges_is_named_and_left_out(benchmark, tmp_path, capsys):
    wild = own(tmp_path, "wild", "NEXT_TASKS: {SOLVER: {BASE_LR: 1.0e+30}}")
    out = benchmark(wild, CONFIGS / "finetune.yaml", expect=1)
    assert set(table(out)) == {"finetune"}
    said = capsys.readouterr().err
    assert "a loss is not finite" in said
    assert f"1 of 2 runs diverged and are in no table:\n{out / '5+5/wild/seed_0'}\n" in said


def test_a_mistake_in_the_last_configuration_is_found_before_the_first_run(benchmark, tmp_path, capsys):
    out = benchmark(CONFIGS / "finetune.yaml", own(tmp_path, "slip", "METHODS: [mass]"), expect=2)
    assert "Did you mean 'mas'?" in capsys.readouterr().err
    assert not out.exists()
