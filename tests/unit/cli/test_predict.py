"""incdet predict: what is read, what is written, what is said."""

import json
import shutil

import cv2
import numpy as np
import pytest
from pictures import write_folder
from pycocotools.coco import COCO

from incdet.cli import main, predict
from incdet.errors import DataError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six pictures of discs and bars, two of them deeper, with files that are no images or damaged ones."""
    root = tmp_path_factory.mktemp("photos")
    pictures = sorted((write_folder(root / "set", 6, (), 5, present=("disc", "bar")) / "JPEGImages").iterdir())
    (root / "images" / "deep").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        shutil.copy(picture, root / "images" / ("deep" if number > 3 else "") / picture.name)
    (root / "images" / "notes.txt").write_text("not an image")
    return root / "images"


def read(folder):
    return json.loads((folder / "predictions.json").read_text()), json.loads((folder / "categories.json").read_text())


def test_objects_are_drawn_written_and_counted(old_run, photos, tmp_path, capsys):
    out = tmp_path / "found"
    assert main(["predict", "--model", str(old_run), "--images", str(photos), "--out", str(out), "--recursive"]) == 0
    found, about = read(out)
    ids = ["deep/im004.png", "deep/im005.png", "im000.png", "im001.png", "im002.png", "im003.png"]
    assert [entry["id"] for entry in about["images"]] == ids
    assert about["categories"] == [{"id": 1, "name": "disc"}, {"id": 2, "name": "bar"}]
    assert {entry["image_id"] for entry in found} == set(ids)
    assert min(entry["score"] for entry in found) >= 0.5
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    discs = [entry for entry in found if entry["category_id"] == 1]
    assert ["disc", str(len(discs)), str(len({entry["image_id"] for entry in discs}))] in table
    assert ["all", str(len(found)), "6"] in table
    drawn = cv2.imread(str(out / "drawn" / "deep" / "im004.png"))
    plain = cv2.resize(
        cv2.imread(str(photos / "deep" / "im004.png")), drawn.shape[1::-1], interpolation=cv2.INTER_CUBIC
    )
    assert (drawn != plain).any()


def test_the_files_are_those_of_coco_tools(old_run, photos, tmp_path):
    main(["predict", "--model", str(old_run / "task_1"), "--images", str(photos), "--out", str(tmp_path)])
    truth = COCO(str(tmp_path / "categories.json"))
    results = truth.loadRes(str(tmp_path / "predictions.json"))
    assert len(results.anns) == len(read(tmp_path)[0]) > 0


def test_the_score_leaves_out_what_is_less_sure(old_run, photos, tmp_path):
    counts = []
    for score in ("0.05", "0.9999", "1"):
        arguments = ["--images", str(photos), "--out", str(tmp_path / score), "--score", score]
        assert main(["predict", "--model", str(old_run), *arguments]) == 0
        found, about = read(tmp_path / score)
        assert all(entry["score"] >= float(score) for entry in found)
        assert len(about["images"]) == 4
        counts.append(len(found))
    assert counts[0] > counts[1] >= counts[2]


def test_unreadable_images_are_all_named_and_the_others_done(old_run, photos, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    (tmp_path / "empty.png").touch()
    paths = [str(tmp_path / "broken.jpg"), str(photos / "im000.png"), str(tmp_path / "empty.png")]
    assert main(["predict", "--model", str(old_run), "--images", *paths, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "not read and left out: 2" in said
    assert "broken.jpg" in said
    assert "empty.png" in said
    assert [entry["id"].split("/")[-1] for entry in read(tmp_path / "out")[1]["images"]] == ["im000.png"]


def test_images_are_found_once_and_never_among_what_was_drawn(tmp_path):
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    for name in ("b.PNG", "a.jpg", "out/drawn/a.jpg", "sub/c.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture)
    out = tmp_path / "out"

    def names(given, recursive):
        return [path.relative_to(tmp_path).as_posix() for path in predict.find_images(given, recursive, out)]

    assert names([tmp_path], False) == ["a.jpg", "b.PNG"]
    assert names([tmp_path], True) == ["a.jpg", "b.PNG", "sub/c.bmp"]
    assert names([tmp_path / "b.PNG", tmp_path], False) == ["b.PNG", "a.jpg"]
    with pytest.raises(DataError, match=r"no image in .* --recursive"):
        predict.find_images([out], False, out)
    with pytest.raises(DataError, match="typo does not exist"):
        predict.find_images([tmp_path, tmp_path / "typo"], False, out)


def test_ids_start_from_the_folder_that_holds_all_that_was_given(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.png").touch()
    assert predict.common_root([tmp_path / "a"]) == tmp_path / "a"
    assert predict.common_root([tmp_path / "b" / "x.png"]) == tmp_path / "b"
    assert predict.common_root([tmp_path / "a", tmp_path / "b" / "x.png"]) == tmp_path


@pytest.mark.parametrize("score", ["-0.1", "1.5", "nan"])
def test_a_score_that_is_none_is_refused(score, tmp_path, capsys):
    arguments = ["--model", "m", "--images", str(tmp_path), "--out", str(tmp_path), f"--score={score}"]
    assert main(["predict", *arguments]) == 2
    assert "--score must lie between 0 and 1" in capsys.readouterr().err


def test_weights_of_somebody_else_are_refused(old_run, photos, tmp_path, capsys):
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes((old_run / "task_1" / "model.safetensors").read_bytes()[:1000])
    assert main(["predict", "--model", str(damaged), "--images", str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
