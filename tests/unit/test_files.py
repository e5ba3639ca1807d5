"""A write is whole or did not happen."""

import errno
import json
import os
import resource

import pytest

from incdet.errors import IncdetError
from incdet.files import atomic_path, read_json, remove_leftovers, write_atomic, write_json


def test_text_and_bytes_are_written_and_the_folder_is_made(tmp_path):
    write_atomic(tmp_path / "run" / "a.txt", "Zürich")
    write_atomic(tmp_path / "run" / "b.bin", b"\x00\xff")
    assert (tmp_path / "run" / "a.txt").read_bytes() == "Zürich".encode()
    assert (tmp_path / "run" / "b.bin").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["a.txt", "b.bin"]


def test_an_error_in_the_block_leaves_the_old_content_and_no_temporary_file(tmp_path):
    target = tmp_path / "model.bin"
    target.write_text("old")

    def fail_half_way():
        with atomic_path(target) as temporary:
            temporary.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_file_lies_beside_the_target_and_keeps_its_suffix(tmp_path):
    with atomic_path(tmp_path / "plot.png") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")


def test_whoever_has_the_old_file_open_keeps_reading_the_old_content(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")
    with target.open() as reader:
        write_atomic(target, "new")
        assert reader.read() == "old"
    assert target.read_text() == "new"


def test_a_full_disk_is_told_with_the_file_and_the_remedy(tmp_path, monkeypatch):
    target = tmp_path / "results.json"
    target.write_text("old")

    def disk_is_full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_is_full)
    with pytest.raises(IncdetError, match=r"results\.json.*No space left.*earlier are untouched.*--resume"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_that_the_system_cuts_short_leaves_the_old_content(tmp_path):
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(IncdetError, match=r"model\.bin.*ulimit"):
            write_atomic(target, b"n" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_recognised_behind_a_librarys_own_error(tmp_path):
    failure = RuntimeError("writer failed")
    failure.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(IncdetError, match="No space left"), atomic_path(tmp_path / "state.pt"):
        raise failure


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "output").write_text("a file")
    with pytest.raises(IncdetError, match="output"):
        write_atomic(tmp_path / "output" / "results.json", "{}")
    assert (tmp_path / "output").read_text() == "a file"


def test_another_error_passes_unchanged(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a"):
        _ = 1 / 0


def test_json_round_trips_and_refuses_nan(tmp_path):
    value = {"ap": {"circle": 0.5, "ring": None}, "matrix": [[0.1], [0.2, 0.3]]}
    write_json(tmp_path / "r.json", value)
    write_json(tmp_path / "p.json", [1, 2], indent=None)
    assert read_json(tmp_path / "r.json", "results") == value
    assert (tmp_path / "p.json").read_text() == "[1, 2]\n"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "r.json", float("nan"))
    assert read_json(tmp_path / "r.json", "results") == value


@pytest.mark.parametrize("content", ['{"ap": [0.1, 0.', "", b"\xff\xfe\x00"])
def test_a_truncated_json_names_the_file_and_the_remedy(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(IncdetError, match=r"result\.json \(the result of task 2\) is not whole JSON.*run the step"):
        read_json(path, "the result of task 2")


def test_a_missing_json_names_the_file(tmp_path):
    with pytest.raises(IncdetError, match=r"absent\.json \(the manifest\) does not exist"):
        read_json(tmp_path / "absent.json", "the manifest")
    with pytest.raises(IncdetError, match="cannot be read"):
        read_json(tmp_path, "the manifest")


def test_text_is_json_with_a_final_newline(tmp_path):
    write_json(tmp_path / "r.json", {"a": 1})
    text = (tmp_path / "r.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": 1}


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / "a.json", tmp_path / ".hidden", tmp_path / "deep" / ".x.tmp.json", tmp_path / "tmp.01234567.tmp"]
    (tmp_path / "deep").mkdir()
    for path in (tmp_path / "state.pt", tmp_path / "deep" / "LICENSE"):
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            name = temporary.name
        path.rename(path.with_name(name))  # as SIGKILL would have left it
    for path in kept:
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
