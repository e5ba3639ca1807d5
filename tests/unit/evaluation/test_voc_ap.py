"""VOC AP: worked by hand, and against a loop written straight from the devkit's rule."""

from __future__ import annotations

import numpy as np
import pytest

from incdet.errors import DataError
from incdet.evaluation.voc_ap import COCO_IOUS, area_ap, eleven_point_ap, voc_ap

from .scenes import dataset, image, predictions, random_scene

BOX = [0, 0, 100, 100]
FAR = [200, 200, 300, 300]


def loop_outcomes(data, found, name, iou, plus):
    """(true, false) flags in falling score order and the number of counted objects; plain Python throughout."""
    label = data.classes.index(name)
    order = sorted(np.flatnonzero(found.labels == label), key=lambda row: -found.scores[row])
    taken, flags = set(), []
    for row in order:
        record = data.images[found.image_index[row]]
        best, best_object = -1.0, None
        for number in np.flatnonzero(record.labels == label):
            a, b = found.boxes[row].astype(float), record.boxes[number].astype(float)
            shared = 1.0
            for low, high in ((0, 2), (1, 3)):
                shared *= max(min(a[high], b[high]) - max(a[low], b[low]) + plus, 0.0)
            areas = [(box[2] - box[0] + plus) * (box[3] - box[1] + plus) for box in (a, b)]
            overlap = shared / (sum(areas) - shared)
            if overlap > best:
                best, best_object = overlap, (record.image_id, number, record.difficult[number] or record.crowd[number])
        if best < iou:
            flags.append((0, 1))
        elif best_object[2]:
            flags.append((0, 0))
        else:
            flags.append((0, 1) if best_object in taken else (1, 0))
            taken.add(best_object)
    counted = sum(int(((r.labels == label) & ~r.difficult & ~r.crowd).sum()) for r in data.images)
    return flags, counted


def loop_ap(flags, counted):
    """Both rules from the definition: the best precision at this recall or a higher one."""
    true = false = 0
    points = []
    for hit, miss in flags:
        true, false = true + hit, false + miss
        points.append((true / counted, true / max(true + false, 1)))
    area, reached = 0.0, 0.0
    for recall, _ in points:
        area += (recall - reached) * max((p for r, p in points if r >= recall), default=0.0)
        reached = recall
    eleven = sum(max((p for r, p in points if r >= t), default=0.0) for t in np.arange(0, 1.1, 0.1)) / 11
    return area, eleven


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("convention", "plus"), [("devkit", 0.0), ("maskrcnn_benchmark", 1.0)])
def test_equals_the_loop(seed, convention, plus):
    data, found = random_scene(seed, crowd=True)
    result = voc_ap(data, found, ious=(0.5, 0.75), convention=convention)
    for row, name in enumerate(data.classes):
        for column, iou in enumerate(result.ious):
            flags, counted = loop_outcomes(data, found, name, iou, plus)
            area, eleven = loop_ap(flags, counted)
            assert result.objects[row] == counted
            assert result.area[row, column] == pytest.approx(area, abs=1e-12)
            assert result.eleven_point[row, column] == pytest.approx(eleven, abs=1e-12)


def test_area_and_eleven_points_by_hand():
    # Two of three objects found: right, wrong, right. Precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    data = dataset([image("a", [BOX, FAR, [400, 0, 450, 50]], [0, 0, 0])])
    found = predictions(data, [(0, BOX, 0.9, 0), (0, [0, 300, 50, 350], 0.8, 0), (0, FAR, 0.7, 0)])
    result = voc_ap(data, found, ["cat"])
    assert result.area[0, 0] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert result.eleven_point[0, 0] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # 0 to 0.3, then 0.4 to 0.6
    curve = result.curve("cat")
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.7])


def test_a_perfect_and_a_useless_detector():
    data = dataset([image("a", [BOX], [0]), image("b", [FAR], [1])])
    result = voc_ap(data, predictions(data, [(0, BOX, 0.9, 0), (1, BOX, 0.9, 1)]))
    np.testing.assert_array_equal(result.area, [[1, 1], [0, 0]])
    np.testing.assert_allclose(result.eleven_point, [[1, 1], [0, 0]])


def test_second_hit_is_a_false_positive_wherever_it_scores():
    data = dataset([image("a", [BOX, FAR], [0, 0])])
    found = predictions(data, [(0, BOX, 0.9, 0), (0, BOX, 0.8, 0), (0, FAR, 0.7, 0)])
    np.testing.assert_allclose(voc_ap(data, found, ["cat"]).curve("cat").precision, [1, 1 / 2, 2 / 3])


def test_a_detection_is_not_passed_on_to_the_next_best_object():
    # Both detections overlap the first object most, so the second object stays missed although it overlaps 0.6.
    data = dataset([image("a", [[0, 0, 100, 100], [0, 0, 100, 60]], [0, 0])])
    found = predictions(data, [(0, [0, 0, 100, 100], 0.9, 0), (0, [0, 0, 100, 90], 0.8, 0)])
    np.testing.assert_array_equal(voc_ap(data, found, ["cat"]).outcomes[0], [1, 0])


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_ignored_objects_neither_count_nor_punish(flag):
    data = dataset([image("a", [BOX, FAR], [0, 0], **{flag: (1,)})])
    found = predictions(data, [(0, FAR, 0.9, 0), (0, FAR, 0.8, 0), (0, BOX, 0.7, 0)])
    result = voc_ap(data, found, ["cat"])
    assert result.objects[0] == 1
    assert result.area[0, 0] == 1
    np.testing.assert_array_equal(result.outcomes[0], [2, 2, 1])


def test_devkit_pixels_are_continuous_boxes():
    # VOC objects 1..10 and 1..5 (both pixels inside): 10 x 10 and 10 x 5 pixels, so the IoU is exactly 0.5.
    data = dataset([image("a", [[0, 0, 10, 10]], [0])])
    found = predictions(data, [(0, [0, 0, 10, 5], 0.9, 0)])
    assert voc_ap(data, found, ["cat"]).area[0, 0] == 1  # the devkit asks for at least 0.5
    assert voc_ap(data, found, ["cat"], convention="detectron2").area[0, 0] == 0  # Detectron2 for more
    # With another pixel per side: 11 * 6 / (11 * 11) = 0.545...
    longer = voc_ap(data, found, ["cat"], ious=(0.54, 0.55), convention="maskrcnn_benchmark")
    np.testing.assert_array_equal(longer.area, [[1, 0]])


def test_detectron2_rounds_boxes_and_scores():
    data = dataset([image("a", [[0, 0, 10, 10]], [0]), image("b", [FAR], [0])])
    almost = predictions(data, [(0, [0, 0, 10, 5.04], 0.9, 0)])  # written as 5.0: exactly 0.5 again
    assert voc_ap(data, almost, ["cat"]).area[0, 0] > 0
    assert voc_ap(data, almost, ["cat"], convention="detectron2").area[0, 0] == 0
    tied = predictions(data, [(1, BOX, 0.9001, 0), (1, FAR, 0.9004, 0)])  # both written as 0.900
    np.testing.assert_array_equal(voc_ap(data, tied, ["cat"]).outcomes[0], [1, 0])
    np.testing.assert_array_equal(voc_ap(data, tied, ["cat"], convention="detectron2").outcomes[0], [0, 1])


def test_equal_scores_keep_their_order():
    data = dataset([image("a", [BOX], [0])])
    rows = [(0, FAR, 0.5, 0)] * 40 + [(0, BOX, 0.5, 0)]
    assert voc_ap(data, predictions(data, rows), ["cat"]).area[0, 0] == pytest.approx(1 / 41)


def test_every_image_counts_and_other_classes_do_not():
    data = dataset([image("a", [BOX, FAR], [0, 1]), image("b", [BOX], [0])])
    found = predictions(data, [(0, BOX, 0.9, 0), (0, FAR, 0.8, 1), (0, BOX, 0.7, 1)])
    result = voc_ap(data, found, ["cat"])
    assert result.classes == ("cat",)
    assert result.area[0, 0] == 0.5  # the cat of image b is missed
    assert len(result.scores) == 1


def test_labels_follow_the_names_not_the_positions():
    data = dataset([image("a", [BOX, FAR], [0, 1])])
    found = predictions(data, [(0, BOX, 0.9, 1), (0, FAR, 0.8, 0)], classes=("dog", "cat"))
    np.testing.assert_array_equal(voc_ap(data, found, ["dog", "cat"]).area, [[1, 1], [1, 1]])


def test_a_class_without_objects_is_undefined_and_one_without_detections_is_zero():
    data = dataset([image("a", [BOX], [0])])
    result = voc_ap(data, predictions(data, []))
    assert result.area[0, 0] == result.eleven_point[0, 0] == 0
    assert np.isnan(result.area[1]).all()
    assert np.isnan(result.eleven_point[1]).all()


def test_only_difficult_objects_are_no_objects():
    data = dataset([image("a", [BOX], [0], difficult=(0,))])
    assert np.isnan(voc_ap(data, predictions(data, [(0, BOX, 0.9, 0)]), ["cat"]).area).all()


def test_an_empty_data_set():
    data = dataset([])
    assert np.isnan(voc_ap(data, predictions(data, [])).area).all()


def test_higher_thresholds_never_help():
    data, found = random_scene(3)
    area = voc_ap(data, found, ious=COCO_IOUS).area
    assert (np.diff(area, axis=1) <= 1e-12).all()


def test_precision_drops_do_not_lower_the_envelope():
    recall, precision = np.array([0.2, 0.4, 0.6]), np.array([0.5, 1.0, 0.75])
    assert area_ap(recall, precision) == pytest.approx(0.2 + 0.2 + 0.2 * 0.75)
    assert eleven_point_ap(recall, precision) == pytest.approx((5 * 1 + 1 * 0.75) / 11)  # 0.6 stays below arange's


def test_unknown_class_image_and_convention():
    data = dataset([image("a", [BOX], [0])])
    found = predictions(data, [(0, BOX, 0.9, 0)])
    with pytest.raises(DataError, match=r"cow.*It has: cat, dog"):
        voc_ap(data, found, ["cow"])
    other = dataset([image("b", [BOX], [0])])
    with pytest.raises(DataError, match="the first is 'a'"):
        voc_ap(other, found)
    with pytest.raises(ValueError, match="devkit"):
        voc_ap(data, found, convention="plus_one")
