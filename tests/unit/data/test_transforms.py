"""Boxes follow the image, and every array of a target stays beside its box."""

import pytest
import torch

from incdet.config import get_cfg
from incdet.data.transforms import GREY, build_transform
from incdet.errors import ConfigError
from incdet.structures import Target

HEIGHT, WIDTH = 20, 30


def transform_for(**inputs):
    cfg = get_cfg()
    cfg.INPUT.update(inputs)
    return build_transform(cfg)


def image_with_bright_boxes(*boxes):
    """Black, with 255 inside each box of whole pixels."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = 255
    return image, target_of(*boxes)


def target_of(*boxes) -> Target:
    count = len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.arange(count),
        torch.arange(count) / 2,
        torch.arange(count) % 2 == 0,
        torch.arange(count) % 2 == 1,
        frozenset({0, 1}),
    )


def outcomes(transform, image, target, draws: int = 20):
    for seed in range(draws):
        torch.manual_seed(seed)
        yield transform(image, target)


def test_without_augmentation_only_the_scale_changes():
    image, target = image_with_bright_boxes((2, 3, 10, 9))
    pixels, found = transform_for(RANDOM_FLIP="none")(image, target)
    assert type(pixels) is type(found.boxes) is torch.Tensor
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, image / 255)
    assert found.labelled == target.labelled
    for name in ("boxes", "labels", "weights", "use_rpn", "use_roi"):
        assert torch.equal(getattr(found, name), getattr(target, name))
        assert getattr(found, name).dtype == getattr(target, name).dtype


def test_a_flip_mirrors_the_boxes_or_changes_nothing():
    image, target = image_with_bright_boxes((2, 3, 10, 9), (20, 0, 30, 20))
    original = target.boxes.clone()
    mirrored = [[20, 3, 28, 9], [0, 0, 10, 20]]
    seen = []
    for pixels, found in outcomes(transform_for(RANDOM_FLIP="horizontal"), image, target):
        flipped = found.boxes.tolist() == mirrored
        assert flipped or torch.equal(found.boxes, original)
        assert torch.equal(pixels, (image.flip(-1) if flipped else image) / 255)
        assert found.labels.tolist() == [0, 1]
        seen.append(flipped)
    assert 5 <= sum(seen) <= 15
    assert torch.equal(target.boxes, original)


def test_zooming_out_pastes_the_image_and_its_boxes_on_grey():
    image, target = image_with_bright_boxes((4, 5, 20, 15))
    sizes = set()
    for pixels, found in outcomes(transform_for(RANDOM_FLIP="none", ZOOM_OUT=3.0), image, target):
        height, width = pixels.shape[-2:]
        sizes.add((height, width))
        assert HEIGHT <= height <= 3 * HEIGHT
        x1, y1, x2, y2 = found.boxes[0].int().tolist()
        assert (x2 - x1, y2 - y1) == (16, 10)
        assert (pixels[:, y1:y2, x1:x2] == 1).all()
        left, top = x1 - 4, y1 - 5
        outside = torch.ones(height, width, dtype=torch.bool)
        outside[top : top + HEIGHT, left : left + WIDTH] = False
        grey = torch.tensor(GREY) / 255
        torch.testing.assert_close(pixels[:, outside], grey[:, None].expand(3, int(outside.sum())))
    assert (HEIGHT, WIDTH) in sizes
    assert len(sizes) > 4


def test_colours_change_within_their_range_and_boxes_stay():
    image, target = image_with_bright_boxes((2, 3, 10, 9))
    image = image // 2
    found = list(outcomes(transform_for(RANDOM_FLIP="none", COLOR_JITTER=0.4), image, target))
    assert all(torch.equal(one.boxes, target.boxes) for _, one in found)
    assert all(pixels.min() >= 0 and pixels.max() <= 1 for pixels, _ in found)
    assert len({float(pixels.sum()) for pixels, _ in found}) > 10


def test_boxes_thinner_than_a_pixel_are_dropped_with_all_that_belongs_to_them():
    target = target_of((1, 1, 5, 5), (3, 3, 3.5, 9), (2, 2, 9, 2), (0, 0, 1, 1), (8, 8, 12, 12))
    _, found = transform_for(RANDOM_FLIP="none")(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), target)
    assert found.labels.tolist() == [0, 3, 4]
    assert found.weights.tolist() == [0, 1.5, 2]
    assert found.use_rpn.tolist() == [True, False, True]
    assert found.use_roi.tolist() == [False, True, False]
    assert found.boxes.tolist() == [[1, 1, 5, 5], [0, 0, 1, 1], [8, 8, 12, 12]]


def test_an_image_without_objects_passes_every_augmentation():
    transform = transform_for(RANDOM_FLIP="horizontal", ZOOM_OUT=2.0, COLOR_JITTER=0.2)
    for _, found in outcomes(transform, *image_with_bright_boxes(), draws=6):
        assert found.boxes.shape == (0, 4)
        assert len(found) == 0


def test_the_same_seed_gives_the_same_pixels():
    transform = transform_for(RANDOM_FLIP="horizontal", ZOOM_OUT=2.0, COLOR_JITTER=0.3)
    image, target = image_with_bright_boxes((2, 3, 10, 9))
    first, second = (list(outcomes(transform, image, target, draws=5)) for _ in range(2))
    for (pixels, found), (others, other_found) in zip(first, second, strict=True):
        assert torch.equal(pixels, others)
        assert torch.equal(found.boxes, other_found.boxes)


def test_an_unknown_flip_names_the_key():
    with pytest.raises(ConfigError, match=r"INPUT\.RANDOM_FLIP: expected horizontal or none, got 'vertical'"):
        transform_for(RANDOM_FLIP="vertical")
