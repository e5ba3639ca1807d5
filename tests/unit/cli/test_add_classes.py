"""incdet add-classes: what comes out, what it is measured on, and that a kill costs nothing."""

import json
import shutil

import pytest
from pictures import write_folder

from incdet.backends import load_detector
from incdet.backends.weights import read_model
from incdet.cli import main
from incdet.config import get_cfg
from incdet.engine import loop

SHORT = ("--iterations", "20")


def add(old, data, out, *more):
    return main(["add-classes", "--model", str(old), "--data", str(data), "--out", str(out), *more])


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def by_agreement(old_run, new_labels, tmp_path_factory):
    """The whole command, without labels of the old classes."""
    out = tmp_path_factory.mktemp("by_agreement") / "both"
    assert add(old_run, new_labels, out) == 0
    return out


@pytest.fixture(scope="module")
def with_old_test(old_run, new_labels, tmp_path_factory):
    """A short run that is tested on labelled old classes."""
    out = tmp_path_factory.mktemp("with_old_test") / "both"
    old_test = f"voc:{old_run.parent}/test:test"
    assert add(old_run / "task_1", new_labels, out, "--old-test", old_test, *SHORT, "SOLVER.BASE_LR", "0.0005") == 0
    return out


def test_the_new_model_knows_both(by_agreement):
    _, classes, cfg = load_detector(by_agreement / "model.safetensors", get_cfg())
    assert classes == ("disc", "bar", "ring")
    assert cfg.SOLVER.MAX_ITER == 60  # NEXT_TASKS of the old model's configuration
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2
    summary = read(by_agreement / "results.json")["summary"]["voc_area_50"]
    assert summary["new"] > 0.6
    assert summary["old"] > 0.6


def test_agreement_is_stamped_wherever_its_numbers_are(by_agreement):
    results = read(by_agreement / "results.json")
    places = [results, results["protocol"], *results["tasks"], read(by_agreement / "task_2" / "result.json")]
    assert [place["stamps"] for place in places] == [["old_by_agreement"]] * 5
    page = (by_agreement / "report.html").read_text()
    assert 'class="badge">OLD_BY_AGREEMENT' in page
    assert "measure agreement with that detector and not accuracy" in page
    # The old model agrees with itself; nothing was learned yet.
    assert results["matrix"]["voc_area_50"][0] == [1.0]


def test_stand_ins_are_old_classes_on_images_that_training_never_sees(by_agreement, new_labels):
    train, test = (read(by_agreement / "data" / f"{name}.json") for name in ("train", "test_by_agreement"))
    ids = [{image["id"] for image in part["images"]} for part in (train, test)]
    assert len(ids[0]) == 48
    assert len(ids[1]) == 12
    assert ids[0].isdisjoint(ids[1])
    assert [entry["name"] for entry in train["categories"]] == ["disc", "bar", "ring"]
    assert {entry["category_id"] for entry in train["annotations"]} == {3}
    assert {entry["category_id"] for entry in test["annotations"]} == {1, 2, 3}
    assert all(image["unlabelled_category_ids"] == [1, 2] for image in train["images"])
    assert not any("unlabelled_category_ids" in image for image in test["images"])


def test_nothing_is_said_of_pseudo_labels_that_nobody_can_judge(by_agreement):
    report = read(by_agreement / "task_2" / "result.json")["extra"]["pseudo_labels"]
    assert report["disc"]["given"] > 0
    assert report["disc"]["precision"] is None


def test_with_labels_of_the_old_classes_the_numbers_are_real(with_old_test, old_run):
    results = read(with_old_test / "results.json")
    assert results["stamps"] == []
    assert "OLD_BY_AGREEMENT" not in (with_old_test / "report.html").read_text()
    before, real = results["tasks"][0]["ap"], read(old_run / "results.json")["tasks"][0]["ap"]
    for metric in ("voc_area_50", "voc_11point_75", "coco"):
        assert before[metric] == pytest.approx(real[metric])
    assert real["coco"]["disc"] < 1
    assert results["tasks"][1]["evaluate"]["images"] == 12 + 30
    assert results["summary"]["voc_area_50"]["new"] is not None
    assert read_model(with_old_test / "model.safetensors")[1]["config"].count("MAX_ITER: 20\n") == 1


def test_a_killed_run_resumes_to_the_same_weights(with_old_test, old_run, new_labels, tmp_path, monkeypatch):
    out = tmp_path / "both"
    arguments = [old_run, new_labels, out, "--old-test", f"voc:{old_run.parent}/test:test", *SHORT]
    values = ["SOLVER.BASE_LR", "0.0005"]
    check_losses = loop.check_losses

    def killed(losses, iteration):
        if iteration == 13:  # after the state of iteration 10
            raise KeyboardInterrupt
        check_losses(losses, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_losses", killed)
        assert add(*arguments, *values) == 130
    assert (out / "task_2" / "state.pt").exists()
    assert not (out / "model.safetensors").exists()
    assert add(*arguments, *values) == 2
    assert add(*arguments, "--resume", *values) == 0
    ours, theirs = (read_model(folder / "model.safetensors")[0] for folder in (out, with_old_test))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_resuming_with_other_data_or_another_schedule_is_refused(by_agreement, old_run, new_labels, tmp_path, capsys):
    other = write_folder(tmp_path / "other", 20, ("ring",), 9)
    assert add(old_run, other, by_agreement, "--resume") == 2
    assert "was written from another model or other data" in capsys.readouterr().err
    assert add(by_agreement / "task_1", new_labels, by_agreement, "--resume", "--iterations", "7") == 2
    assert "SOLVER.MAX_ITER" in capsys.readouterr().err


def test_a_finished_run_is_resumed_without_doing_anything_again(by_agreement, old_run, new_labels, monkeypatch):
    before = (by_agreement / "model.safetensors").read_bytes()
    monkeypatch.setattr(loop, "check_losses", None)  # a training step would fail
    assert add(old_run, new_labels, by_agreement, "--resume") == 0
    assert (by_agreement / "model.safetensors").read_bytes() == before


def test_the_result_can_learn_more(by_agreement, new_labels, tmp_path, capsys):
    """The new model is an old one in turn, and what it learned last is known to it."""
    assert add(by_agreement, new_labels, tmp_path / "more") == 2
    assert "the model knows ring already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labelled", "more", "message"),
    [
        ((), (), "labels no object"),
        (("disc", "ring"), (), "knows disc already. Choose the new ones: --classes ring"),
        (("disc", "bar"), (), "knows bar, disc already"),
        (("ring",), ("--classes", "star"), "labels no star. It labels ring"),
        (("ring",), ("--method", "joint"), "joint trains on the labels of all classes"),
        (("ring",), ("--method", "pseudo"), "Did you mean"),
        (("ring",), ("--iterations", "0"), "--iterations must be at least 1"),
        (("ring",), ("TASKS.SPLIT", "1+1"), "TASKS.SPLIT: decided by"),
        (("ring",), ("--old-test", "voc:elsewhere:test"), "elsewhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_remedy(old_run, tmp_path, capsys, labelled, more, message):
    data = write_folder(tmp_path / "data", 20, labelled, 4)
    assert add(old_run, data, tmp_path / "out", *more) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert message in said
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_too_few_images_are_refused(old_run, tmp_path, capsys):
    assert add(old_run, write_folder(tmp_path / "data", 8, ("ring",), 4), tmp_path / "out") == 2
    assert "at least 10 are needed" in capsys.readouterr().err


def test_all_defects_of_the_folder_are_named_at_once(old_run, tmp_path, capsys):
    data = write_folder(tmp_path / "data", 12, ("ring",), 4)
    (data / "JPEGImages" / "im003.png").unlink()
    (data / "JPEGImages" / "im005.png").write_bytes(b"\x89PNG")
    assert add(old_run, data, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "has 2 defects" in said
    assert "im003" in said
    assert "im005" in said
    assert not (tmp_path / "out").exists()


def test_an_old_test_without_old_classes_is_refused(old_run, new_labels, tmp_path, capsys):
    assert add(old_run, new_labels, tmp_path / "out", "--old-test", str(new_labels)) == 2
    assert "has none of the old classes disc, bar" in capsys.readouterr().err


def test_a_model_of_somebody_else_is_refused(old_run, new_labels, tmp_path, capsys):
    damaged = tmp_path / "model.safetensors"
    shutil.copy(old_run / "task_1" / "model.safetensors", damaged)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert add(damaged, new_labels, tmp_path / "out") == 2
    assert "cannot be read" in capsys.readouterr().err
