"""The memory on disk: what goes in comes out, and what nobody refers to goes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import FIRST, SECOND, STREAM, photographs

from incdet.data.views import task_view
from incdet.errors import DataError
from incdet.files import read_json, write_json
from incdet.replay.boxes import update_boxes
from incdet.replay.memory import Exemplar, load_memory, memory_size, pixels_of, save_memory

ARRAYS = ("boxes", "labels", "weights", "use_rpn", "use_roi")


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "data").mkdir()
    return photographs(tmp_path / "data", "a", "bca", "ad", "cd")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "memory"


def exemplars(dataset, task=FIRST) -> list[Exemplar]:
    view = task_view(dataset, STREAM, task)
    return [Exemplar(replace(image, source="memory"), 0, rank) for rank, image in enumerate(view.images)]


def records(dataset) -> dict:
    return {record.image_id: record for record in dataset.images}


def test_what_goes_in_comes_out(folder, dataset):
    given = exemplars(dataset)
    given[1].image.weights[0], given[1].image.use_rpn[0] = 0.3, False
    save_memory(folder, given)
    found = load_memory(folder, records(dataset))
    assert [(e.kept_for, e.rank) for e in found] == [(0, 0), (0, 1), (0, 2)]
    for before, after in zip(given, found, strict=True):
        for name in ARRAYS:
            expected, got = getattr(before.image, name), getattr(after.image, name)
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
        assert after.image.labelled == {0, 1}
        assert after.image.source == "memory"
        assert after.image.record.path.parent == folder / "images"
        assert after.image.record.path.read_bytes() == before.image.record.path.read_bytes()


def test_an_image_without_objects_keeps_its_shape(folder, dataset):
    image = exemplars(dataset)[0].image
    empty = replace(image, **{name: getattr(image, name)[:0] for name in ARRAYS})
    save_memory(folder, [Exemplar(empty, 0, 0)])
    (found,) = load_memory(folder, records(dataset))
    assert found.image.boxes.shape == (0, 4)
    assert found.image.labels.dtype == np.int64


def test_each_image_says_what_was_labelled_when_it_was_stored(folder, dataset):
    save_memory(folder, [exemplars(dataset)[0], exemplars(dataset, SECOND)[-1]])
    assert [e.image.labelled for e in load_memory(folder, records(dataset))] == [{0, 1}, {2, 3}]


def test_the_memory_outlives_the_photographs(folder, dataset):
    save_memory(folder, exemplars(dataset))
    for record in dataset.images:
        record.path.unlink()
    kept = load_memory(folder, records(dataset))
    save_memory(folder, kept)
    assert all(e.image.record.path.exists() for e in load_memory(folder, records(dataset)))


def test_images_that_nobody_refers_to_are_removed(folder, dataset):
    save_memory(folder, exemplars(dataset))
    save_memory(folder, exemplars(dataset)[:1])
    assert [file.name for file in (folder / "images").iterdir()] == ["im0.png"]
    save_memory(folder, [])
    assert list((folder / "images").iterdir()) == []
    assert load_memory(folder, records(dataset)) == []


def test_an_image_kept_for_two_classes_is_stored_once(folder, dataset):
    one = exemplars(dataset)[1]
    save_memory(folder, [one, replace(one, kept_for=1, rank=4)])
    assert [(e.kept_for, e.rank) for e in load_memory(folder, records(dataset))] == [(0, 1), (1, 4)]
    assert memory_size(folder)["images"] == 1


def test_ids_with_folders_become_plain_file_names(folder, dataset):
    one = exemplars(dataset)[0]
    named = replace(one.image.record, image_id="train/2012/im0")
    save_memory(folder, [replace(one, image=replace(one.image, record=named))])
    assert [file.name for file in (folder / "images").iterdir()] == ["train_2012_im0.png"]
    assert len(load_memory(folder, {"train/2012/im0": named})) == 1


def test_the_size_counts_images_crops_and_annotations(folder, dataset):
    assert memory_size(folder) == {"images": 0, "crops": 0, "bytes": 0}
    save_memory(folder, exemplars(dataset))
    update_boxes(folder / "boxes", [], {0: [torch.zeros(3, 5, 5, dtype=torch.uint8)] * 2})
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) == 7
    assert memory_size(folder) == {"images": 3, "crops": 2, "bytes": sum(file.stat().st_size for file in files)}


def test_an_absent_memory_is_empty(folder):
    assert load_memory(folder, {}) == []


def test_a_memory_whose_image_is_gone_says_so(folder, dataset):
    save_memory(folder, exemplars(dataset))
    (folder / "images" / "im1.png").unlink()
    with pytest.raises(DataError, match=r"im1\.png, which is gone; delete .*memory"):
        load_memory(folder, records(dataset))


def test_a_memory_of_other_data_is_refused(folder, dataset):
    save_memory(folder, exemplars(dataset))
    with pytest.raises(DataError, match=r"memory\.json is not an exemplar memory of this run.*'im0'"):
        load_memory(folder, {})


@pytest.mark.parametrize("broken", [{}, {"exemplars": [{"file": "im0.png"}]}, {"exemplars": 3}])
def test_a_damaged_list_is_refused(folder, dataset, broken):
    save_memory(folder, exemplars(dataset))
    write_json(folder / "memory.json", broken)
    with pytest.raises(DataError, match="is not an exemplar memory"):
        load_memory(folder, records(dataset))


def test_the_list_on_disk_says_its_schema(folder, dataset):
    save_memory(folder, exemplars(dataset))
    content = read_json(folder / "memory.json", "the memory")
    assert content["schema"] == 1
    assert len(content["exemplars"]) == 3


# ---------------------------------------------------------------------- pixels of their own


def test_learned_pixels_are_stored_to_half_a_grey_level(folder, dataset):
    pixels = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    save_memory(folder, [replace(exemplars(dataset)[0], pixels=pixels)])
    (found,) = load_memory(folder, records(dataset))
    assert (pixels_of(found) - pixels).abs().max() <= 1 / 510 + 1e-6
    assert found.pixels is None
    assert torch.equal(pixels_of(replace(found, pixels=pixels)), pixels)


def test_values_beyond_the_range_are_clipped(folder, dataset):
    pixels = torch.tensor([-0.5, 0.5, 1.5]).view(3, 1, 1).expand(3, 4, 5)
    save_memory(folder, [replace(exemplars(dataset)[0], pixels=pixels)])
    (found,) = load_memory(folder, records(dataset))
    assert (255 * pixels_of(found)[:, 0, 0]).round().tolist() == [0, 128, 255]


def test_other_pixels_are_another_file_and_the_same_ones_are_not_written_again(folder, dataset):
    one = exemplars(dataset)[0]
    save_memory(folder, [replace(one, pixels=torch.zeros(3, 4, 5))])
    (black,) = (folder / "images").iterdir()
    written = black.stat().st_mtime_ns
    save_memory(folder, [replace(one, pixels=torch.zeros(3, 4, 5))])
    assert [black] == list((folder / "images").iterdir())
    assert black.stat().st_mtime_ns == written
    save_memory(folder, [replace(one, pixels=torch.ones(3, 4, 5))])
    (white,) = (folder / "images").iterdir()
    assert white != black
    assert pixels_of(load_memory(folder, records(dataset))[0]).min() == 1
