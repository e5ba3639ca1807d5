"""The box memory on disk: which objects may go in, what is cut, what comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import FIRST, STREAM, photographs

from incdet.data.images import read_image
from incdet.data.views import task_view
from incdet.errors import DataError
from incdet.files import read_json, write_json
from incdet.replay.boxes import BoxPlace, StoredBox, boxes_of, cut, load_boxes, update_boxes


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "memory" / "boxes"


@pytest.fixture
def image(tmp_path):
    """Noise of 96 x 64 with one object of class 0."""
    return task_view(photographs(tmp_path, "a"), STREAM, FIRST).images[0]


def crop(value: int, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def with_boxes(image, *rows):
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    labels = np.array([row[4] for row in rows], np.int64)
    used = np.ones(len(rows), bool)
    weights = np.ones(len(rows), np.float32)
    return replace(image, boxes=boxes, labels=labels, weights=weights, use_rpn=used, use_roi=used.copy())


# ---------------------------------------------------------------------- which objects


def test_an_object_is_too_small_only_where_both_sides_are(image):
    images = [
        with_boxes(image, (0, 0, 12, 12, 0), (0, 0, 12.5, 3, 0), (5, 5, 7, 30, 0)),
        with_boxes(image),
        with_boxes(image, (0, 0, 20, 20, 1), (0, 0, 20, 20, 0)),
    ]
    assert boxes_of(images, 0, 12) == [BoxPlace(0, 1), BoxPlace(0, 2), BoxPlace(2, 1)]
    assert boxes_of(images, 1, 12) == [BoxPlace(2, 0)]
    assert boxes_of(images, 2, 12) == []


def test_ignored_objects_are_not_stored(image):
    seen = with_boxes(image, (0, 0, 20, 20, 0), (0, 0, 30, 30, 0))
    seen.use_roi[0] = False
    assert boxes_of([seen], 0, 12) == [BoxPlace(0, 1)]


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ((10, 20, 30, 25), (10, 30), (20, 25)),
        ((9.6, 19.5, 30.4, 24.6), (10, 30), (20, 25)),  # to the nearest pixel; Python rounds 19.5 to 20
        ((-3, -3, 200, 200), (0, 96), (0, 64)),
        ((40.1, 50.1, 40.3, 50.3), (40, 41), (50, 51)),
        ((96, 64, 96, 64), (95, 96), (63, 64)),
    ],
)
def test_a_crop_is_cut_on_whole_pixels(image, box, columns, rows):
    pixels = read_image(image.record.path)
    expected = pixels[:, slice(*rows), slice(*columns)]
    assert torch.equal(cut(with_boxes(image, (*box, 0)), 0), expected)


# ---------------------------------------------------------------------- the memory


def test_what_goes_in_comes_out_to_the_bit(folder):
    noise = torch.randint(0, 256, (3, 7, 5), dtype=torch.uint8)
    stored = update_boxes(folder, [], {0: [noise, crop(3)], 4: [crop(200)]})
    assert stored == load_boxes(folder)
    assert [(box.label, box.rank) for box in stored] == [(0, 0), (0, 1), (4, 0)]
    assert torch.equal(read_image(folder / stored[0].file), noise)
    assert torch.equal(read_image(folder / stored[2].file), crop(200))


def test_what_is_not_kept_is_removed(folder):
    first = update_boxes(folder, [], {0: [crop(1), crop(2)], 1: [crop(3)]})
    second = update_boxes(folder, [first[0]], {2: [crop(4)]})
    assert load_boxes(folder) == second == [first[0], StoredBox("0002_00000.png", 2, 0)]
    assert sorted(path.name for path in folder.iterdir()) == ["0000_00000.png", "0002_00000.png", "boxes.json"]


def test_a_class_without_crops_is_no_error(folder):
    assert update_boxes(folder, [], {0: []}) == load_boxes(folder) == []


def test_an_absent_memory_is_empty(folder):
    assert load_boxes(folder) == []


def test_a_crop_that_is_gone_is_named(folder):
    update_boxes(folder, [], {0: [crop(1)]})
    (folder / "0000_00000.png").unlink()
    with pytest.raises(DataError, match=r"lists 0000_00000\.png, which is gone; delete \S*boxes"):
        load_boxes(folder)


@pytest.mark.parametrize("broken", [{}, {"boxes": [{"file": "a.png"}]}, {"boxes": 3}])
def test_a_damaged_list_is_refused(folder, broken):
    write_json(folder / "boxes.json", broken)
    with pytest.raises(DataError, match=r"boxes\.json is not a box memory"):
        load_boxes(folder)


def test_the_list_holds_nothing_but_files_labels_and_ranks(folder):
    update_boxes(folder, [], {3: [crop(1)]})
    content = read_json(folder / "boxes.json", "the box memory")
    assert content == {"schema": 1, "boxes": [{"file": "0003_00000.png", "label": 3, "rank": 0}]}
