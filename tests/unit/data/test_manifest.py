"""The manifest counts what every task sees and what is hidden from it."""

import json

import pytest
from lettered import STREAM, make_dataset, random_dataset

from incdet.data.manifest import protocol_manifest
from incdet.data.protocols import PROTOCOLS, ObjectTable

KINDS = ("visible", "ignored", "dropped", "hidden_old", "hidden_future")


def test_a_manifest_worked_by_hand():
    manifest = protocol_manifest(make_dataset("aac", "bd?", "", "cd*a*", "dd"), STREAM)
    first, second = manifest["tasks"]
    assert first == {
        "task": 1,
        "classes": ["a", "b"],
        "images": 2,
        "image_ids": ["im0", "im1"],
        "visible": {"a": 2, "b": 1},
        "ignored": {"a": 0, "b": 0},
        "dropped": {"a": 0, "b": 0},
        "hidden_old": {},
        "hidden_future": {"c": 1, "d": 1},
        "shared_images": {"2": 2},
    }
    assert second["image_ids"] == ["im0", "im1", "im3", "im4"]
    assert second["visible"] == {"c": 2, "d": 3}
    assert second["ignored"] == {"c": 0, "d": 1}
    assert second["hidden_old"] == {"a": 2, "b": 1}
    assert second["hidden_future"] == {}
    assert manifest["totals"] == {
        "images": 5,
        "images_used": 4,
        "images_repeated": 2,
        "objects": 10,
        "difficult": 1,
        "crowd": 2,
    }
    assert manifest["class_order_hash"] == STREAM.order_hash


def test_difficult_objects_are_counted_as_dropped_or_ignored():
    dataset = make_dataset("aa?")
    counts = {
        policy: [protocol_manifest(dataset, STREAM, difficult=policy)["tasks"][0][kind]["a"] for kind in KINDS[:3]]
        for policy in ("keep", "drop", "ignore")
    }
    assert counts == {"keep": [2, 0, 0], "drop": [1, 0, 1], "ignore": [1, 1, 0]}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("difficult", ["keep", "drop", "ignore"])
def test_no_object_of_a_task_is_lost_or_counted_twice(protocol, difficult):
    dataset = random_dataset()
    table = ObjectTable.of(dataset, STREAM.classes)
    index = {record.image_id: number for number, record in enumerate(dataset.images)}
    for task, entry in zip(STREAM, protocol_manifest(dataset, STREAM, protocol, difficult)["tasks"], strict=True):
        images = {index[image_id] for image_id in entry["image_ids"]}
        mine = [label in task.new_labels for label in table.labels]
        expected = sum(
            image in images and (new or not crowd)
            for image, new, crowd in zip(table.image, mine, table.crowd, strict=True)
        )
        assert sum(sum(entry[kind].values()) for kind in KINDS) == expected


def test_a_manifest_is_plain_json_and_the_same_every_time():
    manifest = protocol_manifest(random_dataset(), STREAM, "image_split", seed=3)
    assert (
        json.loads(json.dumps(manifest))
        == manifest
        == protocol_manifest(random_dataset(), STREAM, "image_split", seed=3)
    )
