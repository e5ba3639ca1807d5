import math

import pytest

from incdet.data.defects import clip_box


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((10, 20, 30, 40), (10, 20, 30, 40)),
        ((0, 0, 100, 80), (0, 0, 100, 80)),
        ((-1, -0.5, 101, 80.5), (0, 0, 100, 80)),
    ],
)
def test_box_is_clipped_to_the_image(box, clipped):
    assert clip_box(box, 100, 80) == clipped


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 20, math.nan, 40), "10, 20, nan, 40 is not finite"),
        ((10, -math.inf, 30, 40), "not finite"),
        ((10, 20, 10, 40), "positive width and height"),
        ((10, 40, 30, 20), "positive width and height"),
        ((-1.1, 20, 30, 40), "leaves the image, which is 100 x 80 pixels"),
        ((10, 20, 101.1, 40), "leaves the image"),
        ((10, 20, 30, 81.1), "leaves the image"),
        ((100, 20, 101, 40), "lies outside the image"),
        ((10, -1, 30, 0), "lies outside the image"),
    ],
)
def test_box_that_cannot_be_is_refused(box, message):
    with pytest.raises(ValueError, match=message):
        clip_box(box, 100, 80)
