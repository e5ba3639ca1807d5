"""Which images each task gets, on data small enough to be worked by hand."""

from collections import Counter

import numpy as np
import pytest
from lettered import CLASSES, STREAM, make_dataset, random_dataset

from incdet.data.manifest import protocol_manifest
from incdet.data.protocols import PROTOCOLS, assign_images, dataset_stream, loco_order
from incdet.data.records import DetectionDataset
from incdet.errors import DataError, SplitError
from incdet.tasks import build_stream


def test_class_split_repeats_an_image_in_every_task_that_has_one_of_its_classes():
    assert assign_images(make_dataset("a", "cd", "bd", "", "abc"), STREAM) == [[0, 2, 4], [1, 2, 4]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("difficult", "expected"), [("keep", [[0], [1]]), ("drop", [[0], []]), ("ignore", [[0], []])])
def test_objects_that_cannot_be_learned_from_do_not_bring_their_image(protocol, difficult, expected):
    dataset = make_dataset("aa*", "d?", "b*", "c*a*")
    assert assign_images(dataset, STREAM, protocol, difficult) == expected


@pytest.mark.parametrize("protocol", ["image_split", "loco", "latest_class"])
def test_the_disjoint_protocols_give_each_usable_image_to_one_task_that_can_use_it(protocol):
    dataset = random_dataset()
    repeated = assign_images(dataset, STREAM, "class_split", "drop")
    disjoint = assign_images(dataset, STREAM, protocol, "drop")
    assert sorted(disjoint[0] + disjoint[1]) == sorted(set(repeated[0]) | set(repeated[1]))
    assert all(set(mine) <= set(able) for mine, able in zip(disjoint, repeated, strict=True))


def test_image_split_gives_each_task_its_share():
    stream = build_stream("3+1", CLASSES)
    assigned = assign_images(make_dataset(*["ad"] * 40), stream, "image_split")
    assert [len(images) for images in assigned] == [30, 10]


def test_image_split_lets_free_images_make_up_for_bound_ones():
    dataset = make_dataset(*["a"] * 10, *["ad"] * 10)  # ten images can only go to the first task
    assert assign_images(dataset, STREAM, "image_split") == [list(range(10)), list(range(10, 20))]


def test_image_split_follows_the_seed_and_nothing_else():
    dataset = make_dataset(*["ad"] * 40)
    first = assign_images(dataset, STREAM, "image_split", seed=0)
    assert first == assign_images(dataset, STREAM, "image_split", seed=0)
    assert first != assign_images(dataset, STREAM, "image_split", seed=1)


def test_image_split_does_not_depend_on_the_order_of_the_files():
    dataset = make_dataset(*["ad"] * 40)
    turned = DetectionDataset("tiny", CLASSES, dataset.images[::-1])
    forward, backward = (
        [{data.images[i].image_id for i in images} for images in assign_images(data, STREAM, "image_split")]
        for data in (dataset, turned)
    )
    assert forward == backward


def test_loco_gives_an_image_to_the_task_with_most_of_its_objects_and_ties_to_the_earlier():
    assert assign_images(make_dataset("acd", "abd", "ac", "ddab*"), STREAM, "loco") == [[1, 2], [0, 3]]


def test_latest_class_decides_and_what_is_later_is_in_no_image():
    dataset = make_dataset("ab", "aad", "c", "bc", "a", "cd*", "ad?")
    assert assign_images(dataset, STREAM, "latest_class") == [[0, 4], [1, 2, 3, 5, 6]]
    assert assign_images(dataset, STREAM, "latest_class", "ignore") == [[0, 4, 6], [1, 2, 3, 5]]
    manifest = protocol_manifest(random_dataset(), STREAM, "latest_class")
    assert not any(count for task in manifest["tasks"] for count in task["hidden_future"].values())


def test_loco_order_groups_classes_that_share_images():
    dataset = make_dataset("ad", "ad", "ad", "bc", "bc", "ab")
    assert set(loco_order(dataset, (2, 2))[:2]) == {"a", "d"}
    assert set(loco_order(dataset, (2, 2))[2:]) == {"b", "c"}


def test_loco_order_fills_the_largest_group_first_and_leaves_the_loner():
    dataset = make_dataset("ad", "cd", "ac", *["b"] * 10)  # however frequent it is by itself
    assert loco_order(dataset, (1, 3)) == ("b", "d", "c", "a")
    assert loco_order(dataset, (1, 3), ("a", "b", "c", "d")) == ("b", "a", "c", "d")


def test_loco_order_counts_images_and_not_objects_and_leaves_crowds_out():
    dataset = make_dataset("aaaabbbb", "ac", "ac", "b*d", "b*d", "b*d")
    assert set(loco_order(dataset, (2, 2))[:2]) == {"a", "c"}


def test_loco_hides_fewer_objects_than_the_alphabet():
    texts = np.random.default_rng(0).choice(
        ["ac", "bd", "acc", "a", "d", "ab"], p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1], size=200
    )
    dataset = make_dataset(*texts)

    def hidden(stream):
        manifest = protocol_manifest(dataset, stream, "loco")
        return sum(sum({**task["hidden_old"], **task["hidden_future"]}.values()) for task in manifest["tasks"])

    assert hidden(dataset_stream(dataset, "2+2", protocol="loco")) < hidden(STREAM) / 4


def test_dataset_stream_regroups_for_loco_alone_and_says_so():
    dataset = make_dataset("ad", "ad", "bc")
    assert dataset_stream(dataset, "2+2") == STREAM
    loco = dataset_stream(dataset, "2+2", protocol="loco")
    assert [set(task.new) for task in loco] == [{"a", "d"}, {"b", "c"}]
    assert loco.order == "loco from alphabetical"
    assert loco.order_hash != STREAM.order_hash
    assert Counter(loco.classes) == Counter(CLASSES)


def test_wrong_choices_are_named_with_the_known_ones():
    dataset = make_dataset("a")
    with pytest.raises(
        SplitError, match=r"unknown protocol 'classes'.*class_split, image_split, loco.*TASKS\.PROTOCOL"
    ):
        assign_images(dataset, STREAM, "classes")
    with pytest.raises(SplitError, match=r"unknown protocol 'Loco'"):
        dataset_stream(dataset, "2+2", protocol="Loco")
    with pytest.raises(SplitError, match=r"unknown difficult policy 'hide'.*keep, drop, ignore.*DATASETS\.DIFFICULT"):
        assign_images(dataset, STREAM, difficult="hide")
    with pytest.raises(SplitError, match=r"group sizes \[2, 1\] must sum to the 4 classes"):
        loco_order(dataset, (2, 1))


def test_data_that_cannot_be_assigned_are_refused():
    with pytest.raises(DataError, match="'tiny' holds no image"):
        assign_images(make_dataset(), STREAM)
    with pytest.raises(SplitError, match="only one has: d, e"):
        assign_images(make_dataset("a"), build_stream("2+2", ("a", "b", "c", "e")))
