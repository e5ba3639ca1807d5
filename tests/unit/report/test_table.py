"""Benchmark tables: grouping, mean and deviation, formats, warnings."""

import csv
import io
import json
import statistics

import pytest

from incdet.errors import DataError
from incdet.report.runs import read_runs
from incdet.report.table import Cell, benchmark_tables, metric_name, to_csv, to_latex, to_markdown


def cell(table, row, key):
    return table.rows[row].cells[[column.key for column in table.columns].index(key)]


def rename_metric(folder, name):
    """Give a run one metric only, under another name; returns its results."""
    path = folder / "results.json"
    content = json.loads(path.read_text())
    parts = (t[k] for t in content["tasks"] for k in ("ap", "groups", "by_task"))
    for part in (content["matrix"], content["summary"], *parts):
        values = part["voc_area_50"]
        part.clear()
        part[name] = values
    path.write_text(json.dumps(content))
    return content


def test_mean_and_sample_deviation():
    assert Cell.of([1.0, 3.0, None]) == Cell(2.0, pytest.approx(2**0.5))
    assert Cell.of([1.0]) == Cell(1.0, None)
    assert Cell.of([None]) == Cell(None, None)
    assert Cell(70.14, 0.449).text(1) == "70.1 ± 0.4"
    assert Cell(None, None).text(1) == "–"


def test_seeds_are_averaged_and_methods_are_not(make_run):
    folders = [
        make_run("a", seed=0, matrix=((0.7,), (0.6, 0.8))),
        make_run("b", seed=1, matrix=((0.7,), (0.5, 0.8))),
        make_run("c", methods=["finetune"], matrix=((0.7,), (0.0, 0.8))),
    ]
    runs = read_runs(folders)
    (table,) = benchmark_tables(runs)
    assert [row.label for row in table.rows] == ["pseudo_label", "finetune"]
    olds = [100 * run.score("voc_area_50", "old") for run in runs[:2]]
    assert cell(table, 0, "old_voc_area_50").mean == pytest.approx(statistics.fmean(olds))
    assert cell(table, 0, "old_voc_area_50").std == pytest.approx(statistics.stdev(olds))
    assert cell(table, 1, "old_voc_area_50") == Cell(0.0, None)
    assert cell(table, 0, "memory_megabytes").mean == pytest.approx(0.15)
    assert cell(table, 0, "train_minutes").mean == pytest.approx((160 + 162) / 2 / 60)
    assert table.warnings == ()


def test_what_methods_keep_is_counted_beside_the_memory_and_unknown_in_older_results(make_run):
    memory = {"images": 20, "crops": 0, "bytes": 150_000}
    folders = [
        make_run("a", memory=memory | {"method_bytes": 1_200_000}),
        make_run("b", seed=1, memory=memory | {"method_bytes": 1_300_000}),
        make_run("c", methods=["finetune"], memory=memory | {"method_bytes": 0}),
        make_run("d", methods=["replay"], memory=memory),
    ]
    (table,) = benchmark_tables(read_runs(folders))
    kept, digits = [cell(table, row, "method_megabytes") for row in range(3)], 2
    assert [one.text(digits) for one in kept] == ["1.25 ± 0.07", "0.00", "–"]
    assert cell(table, 0, "memory_megabytes").mean == pytest.approx(0.15)


def test_the_gap_to_joint_is_relative_and_only_there_with_a_joint_run(make_run):
    own = make_run("a", matrix=((0.7,), (0.3, 0.5)))
    joint = make_run("j", methods=["joint"], matrix=((0.7,), (0.6, 1.0)))
    (alone,) = benchmark_tables(read_runs([own]))
    assert all("gap" not in column.key for column in alone.columns)
    runs = read_runs([own, joint])
    (table,) = benchmark_tables(runs)
    own_all, joint_all = (run.score("voc_area_50", "all") for run in runs)
    assert cell(table, 0, "gap_to_joint_percent").mean == pytest.approx(100 * (own_all / joint_all - 1))
    assert cell(table, 1, "gap_to_joint_percent").mean == pytest.approx(0)


def test_beside_references_a_run_has_what_is_measured_against_them(make_run):
    own = make_run("a", matrix=((0.7,), (0.3, 0.5)))
    references = [
        make_run("j", methods=["joint"], matrix=((0.7,), (0.6, 1.0))),
        make_run("i", methods=["independent"], matrix=((0.7,), (0.0, 0.4))),
    ]
    runs = read_runs([own, *references])
    (table,) = benchmark_tables(runs)
    before, now, alone = (run.class_ap("voc_area_50") for run in (read_runs([own])[0], runs[0], runs[2]))
    assert before == now
    gain = sum(now[name] - alone[name] for name in ("ring", "star")) / 2
    assert cell(table, 0, "fwt_voc_area_50").mean == pytest.approx(100 * gain)
    assert runs[0].score("voc_area_50", "joint") == pytest.approx(runs[1].score("voc_area_50", "all"))
    assert cell(table, 0, "rpd_voc_area_50").mean == pytest.approx(runs[0].score("voc_area_50", "rpd"))
    # The joint run's own first task, 0.7, beside what its last model reaches on those classes, 0.6.
    assert cell(table, 1, "omega_all_voc_area_50").mean == pytest.approx(100 * (0.7 / 0.6 + 1) / 2)
    assert "FWT" in to_markdown([table])
    assert "rpd" not in to_markdown([table])
    (row, *_) = csv.DictReader(io.StringIO(to_csv([table])))
    assert float(row["rpd_voc_area_50_mean"]) == pytest.approx(runs[0].score("voc_area_50", "rpd"))


@pytest.mark.parametrize("other", [{"seed": 1}, {"model": "resnet50-fpn"}, {"difficult": "drop"}, {"finished": 1}])
def test_a_reference_is_of_the_same_seed_and_setup_and_finished(make_run, other):
    runs = read_runs([make_run("a"), make_run("j", methods=["joint"], **other)])
    assert runs[0].score("voc_area_50", "omega_all") is None


def test_classifiers_whose_heads_know_the_task_have_a_table_of_their_own(make_run):
    folders = [make_run("a"), make_run("b", methods=["finetune"])]
    for folder, metric in zip(folders, ("top1", "top1_task"), strict=True):
        rename_metric(folder, metric)
    tables = benchmark_tables(read_runs(folders))
    assert [table.title.rpartition(", ")[2] for table in tables] == ["top-1", "top-1 within the task"]
    assert cell(tables[1], 0, "acc_top1_task").mean is not None
    first, second = csv.DictReader(io.StringIO(to_csv(tables)))
    assert (first["acc_top1_task_mean"], second["acc_top1_mean"]) == ("", "")


def test_a_steps_cost_is_relative_to_finetuning_and_only_there_beside_it(make_run):
    own = make_run("a", seed=40)  # (80 + 40) seconds for 500 steps
    (alone,) = benchmark_tables(read_runs([own]))
    assert all(column.key != "step_cost" for column in alone.columns)
    (table,) = benchmark_tables(read_runs([own, make_run("f", methods=["finetune"])]))
    assert cell(table, 0, "step_cost").mean == pytest.approx(120 / 80)
    assert cell(table, 1, "step_cost").mean == pytest.approx(1)


def test_classifiers_have_the_columns_of_their_literature(make_run):
    detector, classifier = make_run("a"), make_run("b", matrix=((0.9,), (0.4, 0.8)))
    content = rename_metric(classifier, "top1")
    (table,) = benchmark_tables(read_runs([classifier]))
    summary = content["summary"]["top1"]
    assert cell(table, 0, "acc_top1").mean == pytest.approx(100 * sum(content["matrix"]["top1"][1]) / 2)
    after_base = cell(table, 0, "average_incremental_after_base_top1").mean
    assert after_base == pytest.approx(100 * summary["all"])
    assert after_base < cell(table, 0, "average_incremental_top1").mean
    (table,) = benchmark_tables(read_runs([detector]))
    assert not any(column.key.startswith("acc") for column in table.columns if not column.detail)


def test_other_splits_get_tables_of_their_own(make_run):
    loco = make_run("b", protocol="loco")
    tables = benchmark_tables(read_runs([make_run("a"), loco]))
    assert [table.title for table in tables] == [
        "2+2, class_split, shapes_train / shapes_test, AP50 (area)",
        "2+2, loco, shapes_train / shapes_test, AP50 (area)",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_order_hash", "ffff"), ("difficult", "drop"), ("model", "resnet50-fpn"), ("held_out", True)],
)
def test_runs_that_differ_in_protocol_are_warned_about(make_run, field, value):
    folders = [make_run("a"), make_run("b", methods=["finetune"], **{field: value})]
    (table,) = benchmark_tables(read_runs(folders))
    assert len(table.warnings) == 1
    assert field in table.warnings[0]


def test_unfinished_runs_and_repeated_seeds_are_warned_about(make_run):
    folders = [make_run("a"), make_run("b"), make_run("c", finished=1)]
    (table,) = benchmark_tables(read_runs(folders))
    assert len(table.rows[0].runs) == 2
    assert any("left out" in warning for warning in table.warnings)
    assert any("equal seed" in warning for warning in table.warnings)


def test_an_oracle_never_shares_a_row_and_wears_its_stamp(make_run):
    (table,) = benchmark_tables(read_runs([make_run("a"), make_run("b", seed=1, stamps=["oracle"])]))
    assert [row.label for row in table.rows] == ["pseudo_label", "pseudo_label [ORACLE]"]


def test_formats(make_run):
    folders = [make_run("a", name="50% memory_1 | x"), make_run("b", methods=["finetune"])]
    tables = benchmark_tables(read_runs(folders))
    markdown = to_markdown(tables).splitlines()
    assert markdown[0].startswith("### 2+2")
    assert len({line.replace(r"\|", "").count("|") for line in markdown if line.startswith("|")}) == 1
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert rows[0]["methods"] == "50% memory_1 | x"
    assert float(rows[1]["old_voc_area_50_mean"]) == pytest.approx(tables[0].rows[1].cells[0].mean)
    latex = to_latex(tables)
    assert r"50\% memory\_1" in latex
    assert "±" not in latex
    assert len({line.count("&") for line in latex.splitlines() if line.endswith(r"\\")}) == 1


def test_an_unknown_metric_is_refused_with_the_known_ones(make_run):
    with pytest.raises(DataError, match="voc_area_50"):
        benchmark_tables(read_runs([make_run("a")]), "mAP")


def test_metric_names():
    assert metric_name("voc_11point_50") == "AP50 (11-point)"
    assert metric_name("coco") == "AP50:95 (COCO)"


def test_the_tool_writes_the_file_and_names_a_bad_folder(make_run, tmp_path, run_tool):
    out = tmp_path / "table.md"
    folder = make_run("a")
    assert run_tool("benchmark_table", folder, "--out", out) == (0, "", "")
    assert out.read_text(encoding="utf-8").startswith("### 2+2")
    code, printed, _ = run_tool("benchmark_table", folder, "--format", "csv")
    assert (code, printed.splitlines()[0][:10]) == (0, "table,meth")
    code, _, error = run_tool("benchmark_table", tmp_path / "absent")
    assert code == 2
    assert "absent is not a folder" in error
