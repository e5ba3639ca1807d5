"""Drawing: what is drawn where, what is left alone, and what is refused."""

import numpy as np
import pytest

from incdet.errors import DataError
from incdet.report.draw import PALETTE, class_colour, class_colours, draw_boxes

RED = (255, 0, 0)


def grey(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def test_the_input_image_is_left_alone_and_the_edges_get_the_colour():
    image = grey()
    drawn = draw_boxes(image, np.array([[10, 20, 50, 50]]), [""], [RED], min_side=1)
    assert (image == 128).all()
    assert drawn.shape == image.shape
    assert tuple(drawn[20, 30]) == RED
    assert tuple(drawn[35, 10]) == RED
    assert tuple(drawn[35, 30]) == (128, 128, 128)  # the inside stays free


def test_a_small_image_is_enlarged_by_a_whole_factor_with_its_boxes():
    drawn = draw_boxes(grey(60, 80), np.array([[10, 20, 50, 50]]), [""], [RED], min_side=100)
    assert drawn.shape == (120, 160, 3)
    assert tuple(drawn[40, 60]) == RED


def test_a_dashed_box_has_gaps_and_a_solid_one_has_none():
    box = np.array([[4, 10, 70, 50]])
    solid = draw_boxes(grey(), box, [""], [RED], min_side=1)[10, 4:70]
    dashed = draw_boxes(grey(), box, [""], [RED], dashed=[True], min_side=1)[10, 4:70]
    assert (solid == RED).all()
    assert (dashed == RED).all(axis=1).any()
    assert (dashed == 128).all(axis=1).any()


def test_a_caption_stays_inside_the_image_even_for_a_box_at_the_corner():
    plain = draw_boxes(grey(200, 300), np.array([[280, 0, 299, 15]]), [""], [RED], min_side=1)
    named = draw_boxes(grey(200, 300), np.array([[280, 0, 299, 15]]), ["circle 0.97"], [RED], min_side=1)
    changed = np.argwhere((plain != named).any(axis=2))
    assert len(changed) > 500
    assert changed[:, 1].min() < 250  # pushed to the left so that all of it is seen


def test_captions_of_equal_boxes_do_not_cover_each_other():
    colours = [RED, (0, 0, 255), (0, 255, 0), (255, 0, 255), (0, 255, 255), (255, 255, 0)]
    boxes, names = np.tile([100, 60, 250, 240], (6, 1)), ["circle", "square"] * 3
    drawn = draw_boxes(grey(300, 400), boxes, names, colours, min_side=1)
    for colour in colours:
        assert (drawn == colour).all(axis=2).sum() > 300


def test_no_boxes_give_a_copy():
    image = grey()
    drawn = draw_boxes(image, np.zeros((0, 4)), [], min_side=1)
    assert drawn is not image
    assert (drawn == image).all()


def test_colours_are_fixed_distinct_and_survive_new_classes():
    names = [f"class{i}" for i in range(20)]
    assert class_colour("dog") == class_colour("dog")
    assert len(set(class_colours(names))) == 20
    assert class_colours(names)[:10] == class_colours(names[:10])
    assert len(class_colours([f"class{i}" for i in range(80)])) == 80
    assert len(set(PALETTE)) == len(PALETTE)


@pytest.mark.parametrize(
    ("image", "boxes", "captions", "word"),
    [
        (grey().astype(np.float32), [[0, 0, 5, 5]], ["a"], "uint8"),
        (grey()[..., 0], [[0, 0, 5, 5]], ["a"], "uint8"),
        (grey(), [[0, 0, 5]], ["a"], "boxes"),
        (grey(), [[0, 0, 5, float("nan")]], ["a"], "finite"),
        (grey(), [[0, 0, 5, 5]], ["a", "b"], "captions"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(image, boxes, captions, word):
    with pytest.raises(DataError, match=word):
        draw_boxes(image, np.array(boxes), captions)
