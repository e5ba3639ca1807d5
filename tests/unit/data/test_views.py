"""What a task may see, and what it must never see."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lettered import CLASSES, STREAM, make_dataset, random_dataset

from incdet.data.protocols import PROTOCOLS, ObjectTable
from incdet.data.records import DetectionDataset
from incdet.data.views import assign_images, first_task_alone, full_view, hold_out, loco_order, only_classes, task_view
from incdet.errors import DataError
from incdet.tasks import build_stream

FIRST, SECOND = STREAM


def seen_letters(image):
    return "".join(STREAM.classes[label] for label in image.labels)


def test_a_task_sees_only_objects_of_its_new_classes():
    dataset = make_dataset("acb", "d", "cda")
    view = task_view(dataset, STREAM, SECOND)
    assert view.task is SECOND
    assert [image.record for image in view.images] == list(dataset.images)
    assert [seen_letters(image) for image in view.images] == ["c", "d", "cd"]
    np.testing.assert_array_equal(view.images[2].boxes, [[0, 0, 8, 8], [10, 0, 18, 8]])
    np.testing.assert_array_equal(view.images[0].boxes, [[10, 0, 18, 8]])


def test_the_arrays_have_the_types_that_training_expects():
    image = task_view(make_dataset("ab"), STREAM, FIRST).images[0]
    assert (image.boxes.dtype, image.labels.dtype, image.weights.dtype) == (np.float32, np.int64, np.float32)
    assert image.weights.tolist() == [1, 1]
    assert image.use_rpn.tolist() == image.use_roi.tolist() == [True, True]
    assert image.labelled == {0, 1}
    assert image.source == "task"


def test_the_two_stages_can_be_told_different_things_later():
    image = task_view(make_dataset("ab"), STREAM, FIRST).images[0]
    image.use_rpn[0] = False
    assert image.use_roi.tolist() == [True, True]


@pytest.mark.parametrize(
    ("difficult", "letters", "used"),
    [("keep", "aba", [True, True, False]), ("drop", "ba", [True, False]), ("ignore", "aba", [False, True, False])],
)
def test_difficult_objects_follow_the_policy_and_crowds_are_always_ignored(difficult, letters, used):
    image = task_view(make_dataset("a?cba*"), STREAM, FIRST, difficult=difficult).images[0]
    assert seen_letters(image) == letters
    assert image.use_rpn.tolist() == image.use_roi.tolist() == used


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("difficult", ["keep", "drop", "ignore"])
def test_every_view_holds_usable_new_objects_and_nothing_hidden(protocol, difficult):
    dataset = random_dataset()
    for task, indices in zip(STREAM, assign_images(dataset, STREAM, protocol, difficult), strict=True):
        view = task_view(dataset, STREAM, task, protocol, difficult)
        assert [image.record for image in view.images] == [dataset.images[index] for index in indices]
        for image in view.images:
            assert set(image.labels.tolist()) <= set(task.new_labels) == image.labelled
            assert (image.use_rpn & image.use_roi).any()


def test_a_hidden_label_cannot_change_a_view():
    plain, changed = make_dataset("acd", "bd", "a"), make_dataset("add", "bc", "a")
    for one, other in zip(*(task_view(data, STREAM, FIRST).images for data in (plain, changed)), strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_an_empty_task_names_its_classes_and_the_settings():
    with pytest.raises(DataError, match=r"task 2 has nothing to learn from.*'tiny'.*c, d.*DATASETS\.TRAIN"):
        task_view(make_dataset("a", "c*"), STREAM, SECOND)
    with pytest.raises(DataError, match=r"DATASETS\.DIFFICULT \('drop'\)"):
        task_view(make_dataset("a", "c?"), STREAM, SECOND, difficult="drop")


def test_joint_training_sees_every_object_of_every_seen_class():
    dataset = make_dataset("acb", "d", "", "cda")
    first, last = (full_view(dataset, STREAM, task) for task in STREAM)
    assert [seen_letters(image) for image in first.images] == ["ab", "a"]
    assert [seen_letters(image) for image in last.images] == ["acb", "d", "cda"]
    assert last.images[0].labelled == {0, 1, 2, 3}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_joint_training_has_the_images_of_the_tasks_so_far(protocol):
    dataset = random_dataset()
    stream = build_stream("1x4", CLASSES)
    assigned = assign_images(dataset, stream, protocol)
    for task in stream:
        view = full_view(dataset, stream, task, protocol)
        expected = sorted(set().union(*assigned[: task.index]))
        assert [image.record for image in view.images] == [dataset.images[index] for index in expected]


def test_held_out_images_are_a_disjoint_stratified_share():
    dataset = make_dataset(*["a"] * 40, *["ab"] * 20, *["cb"] * 10, *[""] * 10, *["cd"] * 20)
    train, held = hold_out(dataset, 0.2, seed=0)
    assert (len(train), len(held)) == (80, 20)
    assert {image.image_id for image in train.images} | {image.image_id for image in held.images} == {
        image.image_id for image in dataset.images
    }
    texts = ["".join(CLASSES[label] for label in image.labels) for image in held.images]
    # By rarest class: d 20 images, then b and c at 30 each (c wins the tie in "cb"), a 40, none 10.
    assert {text: texts.count(text) for text in ("a", "ab", "cb", "", "cd")} == {
        "a": 8,
        "ab": 4,
        "cb": 2,
        "": 2,
        "cd": 4,
    }
    assert (train.name, held.name) == ("tiny/train", "tiny/held_out")
    assert train.classes == held.classes == CLASSES


def test_held_out_images_keep_the_source_order_and_follow_the_seed():
    dataset = random_dataset()
    picks = [[image.image_id for image in hold_out(dataset, 0.3, seed)[1].images] for seed in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]
    numbers = [int(name[2:]) for name in picks[0]]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(DataError, match=r"between 0 and 1.*DATASETS\.HELD_OUT"):
        hold_out(make_dataset("a", "b"), fraction, 0)


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(DataError, match="leaves one part empty"):
        hold_out(make_dataset("a", "b"), fraction, 0)


def test_the_first_task_alone_has_its_images_and_only_its_labels():
    alone = first_task_alone(make_dataset("acb", "d", "cda?", "c"), STREAM)
    assert (alone.name, alone.classes) == ("tiny/task_1", ("a", "b"))
    assert [image.image_id for image in alone.images] == ["im0", "im2"]
    assert [image.labels.tolist() for image in alone.images] == [[0, 1], [0]]
    assert [image.difficult.tolist() for image in alone.images] == [[False, False], [True]]
    np.testing.assert_array_equal(alone.images[0].boxes, [[0, 0, 8, 8], [20, 0, 28, 8]])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("difficult", ["keep", "drop", "ignore"])
def test_nothing_of_a_later_task_is_in_the_first_task_alone(protocol, difficult):
    dataset = random_dataset()
    view = task_view(dataset, STREAM, FIRST, protocol, difficult)
    alone = first_task_alone(dataset, STREAM, protocol, difficult)
    assert [image.image_id for image in alone.images] == [image.record.image_id for image in view.images]
    truth = {image.image_id: [CLASSES[label] for label in image.labels] for image in dataset.images}
    for image in alone.images:
        assert [alone.classes[label] for label in image.labels] == [c for c in truth[image.image_id] if c in FIRST.new]
        assert len(image.boxes) == len(image.labels) == len(image.difficult) == len(image.crowd)


def test_classes_that_nobody_marked_follow_the_labels():
    image = replace(make_dataset("ab").images[0], unlabelled=frozenset({CLASSES.index("c"), CLASSES.index("d")}))
    [kept] = only_classes(DetectionDataset("one", CLASSES, (image,)), ("c", "a")).images
    assert (kept.labels.tolist(), kept.unlabelled) == ([1], {0})


def test_a_class_that_nobody_marked_in_an_image_is_not_labelled_there():
    marked, other = make_dataset("a", "ac").images
    partly = replace(other, unlabelled=frozenset({CLASSES.index("b"), CLASSES.index("d")}))
    view = task_view(DetectionDataset("two", CLASSES, (marked, partly)), STREAM, FIRST)
    assert [image.labelled for image in view.images] == [{0, 1}, {STREAM.classes.index("a")}]


@pytest.mark.shared_data
def test_real_photographs_leave_old_objects_unlabelled():
    """Images with objects of both tasks are what makes the problem hard: a third of the real ones have them."""
    folder = Path(__file__).parents[4] / "shared" / "data" / "voc2012_mini"
    if not folder.is_dir():
        pytest.skip(f"no photographs: {folder} does not exist")
    from incdet.data.voc import VOC_CLASSES, load_voc

    dataset = load_voc(folder, "trainval", VOC_CLASSES, "voc2012_mini")
    stream = build_stream("10+10", dataset.classes)
    views = [task_view(dataset, stream, task, difficult="drop") for task in stream]
    objects = ObjectTable.of(dataset, stream.classes)
    assert sum(int(image.use_roi.sum()) for view in views for image in view.images) == int((~objects.difficult).sum())
    ids = [{image.record.image_id for image in view.images} for view in views]
    assert len(ids[0] | ids[1]) <= len(dataset)
    assert 0.1 < len(ids[0] & ids[1]) / len(dataset) < 0.5

    grouped = build_stream("10+10", loco_order(dataset, (10, 10)), "id")
    assigned = assign_images(dataset, grouped, "loco")
    assert not set(assigned[0]) & set(assigned[1])
