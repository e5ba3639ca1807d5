import io
import runpy
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from incdet.data.shapes import write_shapes
from incdet.data.unpack import unpack
from incdet.errors import DataError

SCRIPTS = Path(__file__).parents[3] / "datasets"


def write_tar(path, names):
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return path


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_two_archives_of_one_year_are_merged(tmp_path):
    output = tmp_path / "datasets"
    for part in ("trainval", "test"):
        archive = write_tar(tmp_path / f"{part}.tar", [f"VOCdevkit/VOC2007/ImageSets/Main/{part}.txt"])
        assert unpack(archive, output, ["VOCdevkit/VOC20??"]) == [output / "VOC2007"]
    assert files_below(output) == ["VOC2007/ImageSets/Main/test.txt", "VOC2007/ImageSets/Main/trainval.txt"]
    assert [path.name for path in output.iterdir()] == ["VOC2007"]


def test_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("annotations/a.json", "{}")
        archive.writestr("../evil.txt", "outside")
    assert unpack(tmp_path / "a.zip", tmp_path / "out", ["annotations"]) == [tmp_path / "out" / "annotations"]
    assert files_below(tmp_path) == ["a.zip", "out/annotations/a.json"]


def test_an_archive_that_reaches_outside_is_refused_whole(tmp_path):
    archive = write_tar(tmp_path / "a.tar", ["VOCdevkit/VOC2007/a.txt", "../../evil.txt"])
    with pytest.raises(DataError, match=r"a\.tar: cannot be unpacked \(.*outside"):
        unpack(archive, tmp_path / "out", ["VOCdevkit/VOC20??"])
    assert files_below(tmp_path) == ["a.tar"]


def test_damaged_missing_and_foreign_archives(tmp_path):
    whole = write_tar(tmp_path / "a.tar", ["VOCdevkit/VOC2007/a.txt"])
    with pytest.raises(DataError, match="expected a folder train2017"):
        unpack(whole, tmp_path / "out", ["train2017"])
    whole.write_bytes(whole.read_bytes()[:515])
    with pytest.raises(DataError, match="Download the archive again"):
        unpack(whole, tmp_path / "out", ["VOCdevkit/VOC20??"])
    with pytest.raises(DataError, match=r"none\.tar"):
        unpack(tmp_path / "none.tar", tmp_path / "out", ["VOCdevkit/VOC20??"])


def run_script(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    return stopped.value.code


def test_make_shapes_script(tmp_path, monkeypatch, capsys):
    arguments = ("--output", tmp_path / "s", "--train", 2, "--test", 1, "--size", 64)
    assert run_script(monkeypatch, "make_shapes.py", *arguments) == 0
    assert len(list((tmp_path / "s/JPEGImages").iterdir())) == 3
    assert run_script(monkeypatch, "make_shapes.py", *arguments) == 1
    assert "exists already" in capsys.readouterr().err


def test_prepare_voc_script_unpacks_and_reports_defects(tmp_path, monkeypatch, capsys):
    write_shapes(tmp_path / "VOC2007", train=2, test=1, size=64)
    archive = tmp_path / "VOCtest.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "VOC2007", "VOCdevkit/VOC2007")
    assert run_script(monkeypatch, "prepare_voc.py", archive, "--output", tmp_path / "out") == 0
    assert "0 defects" in capsys.readouterr().out
    (tmp_path / "VOC2007/JPEGImages/test_00000.jpg").write_bytes(b"")
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "VOC2007", "VOCdevkit/VOC2007")
    assert run_script(monkeypatch, "prepare_voc.py", archive, "--output", tmp_path / "out") == 1
    assert "test_00000.jpg: the file is empty" in capsys.readouterr().err


def test_prepare_coco_script_unpacks_and_checks(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("annotations/instances_val2017.json", "{}")
        archive.writestr("val2017/1.jpg", "no image")
    assert run_script(monkeypatch, "prepare_coco.py", tmp_path / "a.zip", "--output", tmp_path / "out") == 1
    assert "instances_val2017.json: images: expected a list" in capsys.readouterr().err
