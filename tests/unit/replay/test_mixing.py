"""Mixup and mosaic, on pixels and boxes worked out by hand."""

import pytest
import torch

from incdet.replay import mixing
from incdet.replay.mixing import GREY, find_room, fit, mixup, mosaic, paste
from incdet.structures import Target


def plain(value: float, height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), value)


def no_objects() -> Target:
    return Target.from_boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def row(image: torch.Tensor, y: int) -> list[float]:
    """One row of the first channel."""
    return image[0, y].tolist()


# ---------------------------------------------------------------------- paste


def test_a_crop_replaces_what_is_below_it():
    image = plain(0.5, 4, 6)
    box = paste(image, plain(1.0, 2, 3), left=2, top=1)
    assert box.tolist() == [2, 1, 5, 3]
    assert row(image, 0) == row(image, 3) == [0.5] * 6
    assert row(image, 1) == row(image, 2) == [0.5, 0.5, 1, 1, 1, 0.5]


def test_the_weight_is_that_of_the_image():
    image = plain(0.5, 2, 2)
    paste(image, plain(1.0, 1, 2), left=0, top=0, weight=0.25)
    assert image[:, 0].unique().item() == pytest.approx(0.25 * 0.5 + 0.75 * 1.0)
    assert image[:, 1].unique().item() == 0.5


@pytest.mark.parametrize(
    ("left", "top", "box", "seen"),
    [
        (-1, 0, [0, 0, 2, 2], [[2, 3], [5, 6]]),  # its left column is cut off
        (0, -1, [0, 0, 3, 1], [[4, 5, 6]]),
        (3, 0, [3, 0, 4, 2], [[1], [4]]),
        (2, 3, [2, 3, 4, 4], [[1, 2]]),
    ],
)
def test_what_lies_outside_is_cut_off(left, top, box, seen):
    image = plain(0.0, 4, 4)
    crop = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).expand(3, 2, 3)
    assert paste(image, crop, left, top).tolist() == box
    x1, y1, x2, y2 = box
    assert image[1, y1:y2, x1:x2].tolist() == seen
    assert image.count_nonzero() == 3 * sum(map(len, seen))


# ---------------------------------------------------------------------- fit


@pytest.mark.parametrize("shape", [(20, 20), (70, 70), (10, 60), (100, 30)])
def test_a_crop_of_a_fitting_size_stays_as_it_is(shape):
    crop = torch.rand(3, *shape)
    assert fit(crop, (80, 120)) is crop


@pytest.mark.parametrize("shape", [(19, 19), (72, 72), (4, 8), (300, 100)])
def test_another_is_brought_to_half_an_image_and_keeps_its_shape(shape):
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        fitted = fit(torch.rand(3, *shape), (80, 120))
        height, width = fitted.shape[-2:]
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.05)
        assert 0 <= fitted.min() <= fitted.max() <= 1
        shares.append((height + width) / 200)
    assert 0.39 <= min(shares) < 0.45 < 0.55 < max(shares) <= 0.61


def test_a_thin_crop_keeps_a_pixel():
    assert fit(torch.rand(3, 1, 300), (50, 50)).shape[-2] == 1


# ---------------------------------------------------------------------- find_room


def test_room_begins_in_the_top_left_of_an_empty_image():
    corners = [find_room((10, 20), (100, 50), torch.zeros(0, 4)) for _ in range(300)]
    lefts, tops = zip(*corners, strict=True)
    assert (min(lefts), max(lefts)) == (0, 30)
    assert (min(tops), max(tops)) == (0, 40)


def test_what_fits_nowhere_else_ends_in_the_bottom_right():
    """The object covers all but the last twenty rows, where no top left corner may lie."""
    objects = torch.tensor([[0.0, 0, 100, 80]])
    corners = [find_room((20, 20), (100, 100), objects) for _ in range(100)]
    assert {corner for corner in corners if corner is not None}
    for left, top in filter(None, corners):
        assert 20 <= left <= 80  # its right edge between 40 and 100
        assert (min(top + 20, 100) - top - max(80 - top, 0)) / 20 >= 0.7  # at most 30 % of it on the object


def test_no_room_is_found_where_an_object_fills_the_image():
    assert find_room((10, 10), (40, 40), torch.tensor([[0.0, 0, 40, 40]])) is None


def test_small_objects_may_not_be_hidden_either():
    """A crop as large as the image hides them wherever it lies over them, though they cover little of it."""
    objects = torch.tensor([[30.0, 30, 50, 50]])
    for left, top in filter(None, (find_room((60, 60), (80, 80), objects) for _ in range(50))):
        hidden = torch.tensor([min(left + 60, 50) - max(left, 30), min(top + 60, 50) - max(top, 30)]).clamp(min=0)
        assert hidden.prod() <= 0.3 * 400


# ---------------------------------------------------------------------- mixup


def test_mixup_by_hand(monkeypatch):
    monkeypatch.setattr(mixing, "find_room", lambda *_: (1, 2))
    image, target = plain(1.0, 5, 5), Target.from_boxes(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([7]))
    torch.manual_seed(0)
    weight = torch.distributions.Beta(2.0, 5.0).sample().item()
    torch.manual_seed(0)
    mixed, objects = mixup(image, target, [(plain(0.0, 2, 3), 3)])
    assert image.unique().tolist() == [1.0]  # the loader's image is left as it is
    assert row(mixed, 1) == row(mixed, 4) == [1.0] * 5
    assert row(mixed, 2) == row(mixed, 3) == pytest.approx([1, weight, weight, weight, 1])
    assert objects.boxes.tolist() == [[0, 0, 1, 1], [1, 2, 4, 4]]
    assert objects.labels.tolist() == [7, 3]
    assert objects.weights.tolist() == [1, 1]
    assert objects.use_rpn.tolist() == objects.use_roi.tolist() == [True, True]


def test_the_image_shines_through_by_two_sevenths_on_average():
    torch.manual_seed(0)
    crops = [(plain(0.0, 10, 10), 0)]
    weights = [mixup(plain(1.0, 20, 20), no_objects(), crops)[0].min().item() for _ in range(400)]
    assert sum(weights) / 400 == pytest.approx(2 / 7, abs=0.03)


def test_a_second_crop_does_not_hide_the_first():
    for seed in range(40):
        torch.manual_seed(seed)
        _, target = mixup(plain(0.0, 60, 60), no_objects(), [(plain(1.0, 30, 30), 0), (plain(1.0, 30, 30), 1)])
        if len(target) == 2:
            shared = (target.boxes[:, 2:].amin(dim=0) - target.boxes[:, :2].amax(dim=0)).clamp(min=0).prod()
            sizes = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(dim=1)
            assert shared <= 0.3 * sizes.min()


def test_a_crop_without_room_is_left_out():
    everything = Target.from_boxes(torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([1]))
    image, target = mixup(plain(0.3, 40, 40), everything, [(plain(1.0, 10, 10), 0)])
    assert image.unique().tolist() == pytest.approx([0.3])
    assert target.labels.tolist() == [1]


def test_ignored_objects_stay_ignored_and_are_not_hidden():
    ignored = no_objects().with_ignored(torch.tensor([[0.0, 0, 40, 40]]))
    _, target = mixup(plain(0.3, 40, 40), ignored, [(plain(1.0, 10, 10), 0)])
    assert target.use_roi.tolist() == [False]


# ---------------------------------------------------------------------- mosaic


def test_mosaic_by_hand(monkeypatch):
    """The centre of an 8 x 12 image's 10 x 10 canvas is drawn at (5, 4)."""
    drawn = iter([0.5, 0.4])
    monkeypatch.setattr(mixing, "_uniform", lambda _: next(drawn))
    crops = [(plain(0.1, 2, 3), 4), (plain(0.2, 9, 2), 5), (plain(0.3, 1, 1), 6), (plain(0.4, 3, 9), 7)]
    image, target = mosaic(crops, (8, 12))
    assert image.shape == (3, 10, 10)
    assert target.boxes.tolist() == [[2, 2, 5, 4], [5, 0, 7, 4], [4, 4, 5, 5], [5, 4, 10, 7]]
    assert target.labels.tolist() == [4, 5, 6, 7]
    g = GREY
    expected = {
        0: [g, g, g, g, g, 0.2, 0.2, g, g, g],
        3: [g, g, 0.1, 0.1, 0.1, 0.2, 0.2, g, g, g],
        4: [g, g, g, g, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4],
        6: [g, g, g, g, g, 0.4, 0.4, 0.4, 0.4, 0.4],
        7: [g] * 10,
    }
    for y, values in expected.items():
        assert row(image, y) == pytest.approx(values)


def test_the_crops_meet_near_the_middle_of_the_canvas():
    torch.manual_seed(0)
    for _ in range(50):
        _, target = mosaic([(plain(1.0, 30, 30), i) for i in range(4)], (90, 110))
        x, y = target.boxes[0, 2:].tolist()
        assert 40 <= x <= 60
        assert 40 <= y <= 60
        assert target.boxes[3, :2].tolist() == [x, y]


def test_the_same_seed_mixes_the_same():
    def mixed():
        torch.manual_seed(5)
        crops = [(fit(torch.ones(3, 4, 4), (60, 60)), i) for i in range(4)]
        return [mixup(plain(0.0, 60, 60), no_objects(), crops[:2]), mosaic(crops, (60, 60))]

    for (image, target), (other, its) in zip(mixed(), mixed(), strict=True):
        assert torch.equal(image, other)
        assert torch.equal(target.boxes, its.boxes)
