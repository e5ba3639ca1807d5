import cv2
import numpy as np
import pytest

from incdet.data.catalog import load_dataset
from incdet.data.outlines import OUTLINES
from incdet.data.shapes import SHAPE_CLASSES, SPLITS, _rasterise, draw_image, write_shapes
from incdet.errors import DataError


@pytest.fixture(scope="module")
def images():
    return [draw_image(0, "train", index) for index in range(150)]


def overlap(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return sides.clip(0).prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())


def test_twenty_classes_in_alphabetical_order():
    assert len(SHAPE_CLASSES) == 20
    assert list(SHAPE_CLASSES) == sorted(SHAPE_CLASSES)


def test_an_image_is_a_function_of_seed_split_and_index(images):
    for index in (3, 7):
        for first, again in zip(images[index], draw_image(0, "train", index), strict=True):
            assert np.array_equal(first, again)
    others = [draw_image(1, "train", 3), draw_image(0, "test", 3), draw_image(0, "train", 4)]
    assert all(not np.array_equal(images[3][0], other[0]) for other in others)


def test_contents(images):
    counts = np.array([len(labels) for _, _, labels in images])
    assert set(counts) == {1, 2, 3}
    assert set(np.concatenate([labels for _, _, labels in images])) == set(range(20))
    boxes = np.concatenate([boxes for _, boxes, _ in images])
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= 128).all()
    long_sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert long_sides.min() > 27
    assert long_sides.max() < 65
    for _, boxes, _ in images:
        for i in range(len(boxes)):
            for j in range(i):
                assert overlap(boxes[i], boxes[j]) <= 0.15


def test_both_halves_of_the_classes_appear_together(images):
    """An incremental split must leave old objects unlabelled beside new ones, in a good part of the images."""
    mixed = [len({int(label) // 10 for label in labels}) == 2 for _, _, labels in images]
    assert np.mean(mixed) > 0.25


@pytest.mark.parametrize("name", SHAPE_CLASSES)
def test_box_is_tight_about_the_mask(name):
    coverage, box = _rasterise(np.random.default_rng(1), SHAPE_CLASSES.index(name), 128)
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    outer = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert (np.abs(box - outer) < 1).all()  # the box is exact to a quarter pixel, the mask here to a whole one
    assert np.array_equal(np.floor(box[:2]), outer[:2])
    assert np.array_equal(np.ceil(box[2:]), outer[2:])
    assert 0 < coverage[coverage < 1].max() < 1  # anti-aliased


def silhouette(name):
    contours = OUTLINES[name]()
    points = np.concatenate(contours)
    scale = 63 / np.ptp(points, axis=0).max()
    mask = np.zeros((64, 64), dtype=np.uint8)
    cv2.fillPoly(mask, [((c - points.min(axis=0)) * scale).round().astype(np.int32) for c in contours], 1)
    return mask


def test_no_two_classes_look_alike():
    masks = {name: silhouette(name) for name in SHAPE_CLASSES}
    for name in masks:
        assert 0.08 < masks[name].mean() <= 1
        for other in masks:
            if other < name:
                union = (masks[name] | masks[other]).sum()
                assert (masks[name] & masks[other]).sum() / union < 0.9, (name, other)


def test_ring_has_a_hole_and_circle_has_none():
    assert silhouette("ring")[32, 32] == 0
    assert silhouette("circle")[32, 32] == 1


def test_written_set_is_read_back(tmp_path):
    write_shapes(tmp_path / "shapes", seed=3, train=6, test=4, size=96)
    for split, count in zip(SPLITS, (6, 4), strict=True):
        dataset = load_dataset(f"shapes_{split}", root=tmp_path)
        assert len(dataset) == count
        assert dataset.classes == SHAPE_CLASSES
        for index, image in enumerate(dataset.images):
            _, boxes, labels = draw_image(3, split, index, 96)
            assert np.array_equal(image.boxes, boxes)
            assert np.array_equal(image.labels, labels)
            assert cv2.imread(str(image.path)).shape == (96, 96, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("incdet.data.shapes.write_annotation", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", train=2, test=2)
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path):
    (tmp_path / "mine.txt").write_text("not to be lost")
    with pytest.raises(DataError, match="exists already"):
        write_shapes(tmp_path)
    assert (tmp_path / "mine.txt").exists()
    with pytest.raises(DataError, match="got train=0"):
        write_shapes(tmp_path / "new", train=0)
