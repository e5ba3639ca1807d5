"""The manifest of a protocol: what every task of a stream sees, and what is hidden from it, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from incdet.data.protocols import ObjectTable, assign_images
from incdet.data.records import DetectionDataset
from incdet.tasks import TaskSpec, TaskStream


def protocol_manifest(
    dataset: DetectionDataset,
    stream: TaskStream,
    protocol: str = "class_split",
    difficult: str = "keep",
    seed: int = 0,
) -> dict[str, Any]:
    """What a run's ``protocol.json`` says of its training data; plain JSON values.

    Per task, objects are counted by class:

    - ``visible``: the task's own objects that it learns from; ``ignored``: crowd, and difficult under ``ignore``;
      ``dropped``: difficult under ``drop``.
    - ``hidden_old`` and ``hidden_future``: objects of other tasks' classes that are in the task's images without a
      label, difficult ones included and crowd apart. Old ones are what a method must not unlearn as background.
    - ``shared_images``: how many of the task's images each other task has too.
    """
    table = ObjectTable.of(dataset, stream.classes)
    assigned = assign_images(dataset, stream, protocol, difficult, seed)
    members = np.zeros((len(stream), len(dataset)), dtype=bool)
    for member, images in zip(members, assigned, strict=True):
        member[images] = True
    shared = members.astype(np.int64) @ members.T
    return {
        "schema": 1,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "split": stream.split,
        "protocol": protocol,
        "difficult": difficult,
        "seed": seed,
        "classes": list(stream.classes),
        "class_order": stream.order,
        "class_order_hash": stream.order_hash,
        "totals": {
            "images": len(dataset),
            "images_used": int(members.any(axis=0).sum()),
            "images_repeated": int((members.sum(axis=0) > 1).sum()),
            "objects": len(table.labels),
            "difficult": int(table.difficult.sum()),
            "crowd": int(table.crowd.sum()),
        },
        "tasks": [
            {
                "task": task.index,
                "classes": list(task.new),
                "images": len(images),
                "image_ids": [dataset.images[image].image_id for image in images],
                **_object_counts(table, stream, task, member, difficult),
                "shared_images": {str(o.index): int(count) for o, count in zip(stream, row, strict=True) if o != task},
            }
            for task, images, member, row in zip(stream, assigned, members, shared, strict=True)
        ],
    }


def _object_counts(
    table: ObjectTable, stream: TaskStream, task: TaskSpec, member: np.ndarray, difficult: str
) -> dict[str, dict[str, int]]:
    """Objects in the images of one task (``member``, one flag per image), by what becomes of them and by class."""
    here, usable = member[table.image], table.usable(difficult)
    dropped = table.difficult & ~table.crowd if difficult == "drop" else np.zeros_like(usable)
    future = range(task.num_seen, len(stream.classes))

    def count(chosen: np.ndarray, labels: range) -> dict[str, int]:
        counts = np.bincount(table.labels[here & chosen], minlength=len(stream.classes))
        return {stream.classes[label]: int(counts[label]) for label in labels}

    return {
        "visible": count(usable, task.new_labels),
        "ignored": count(~usable & ~dropped, task.new_labels),
        "dropped": count(dropped, task.new_labels),
        "hidden_old": count(~table.crowd, task.old_labels),
        "hidden_future": count(~table.crowd, future),
    }
