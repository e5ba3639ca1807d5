"""A task split made visible: the manifest as a table for people, and images with what is seen and what is hidden."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from incdet.data.images import read_image
from incdet.data.protocols import ObjectTable
from incdet.data.records import DetectionDataset, ImageRecord
from incdet.files import write_atomic
from incdet.report.draw import FONT, Colour, draw_boxes
from incdet.tasks import TaskSpec, TaskStream

KINDS = ("visible", "ignored", "dropped", "hidden_old", "hidden_future")
_WIDTH = 110  # characters of a line of text
_NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class Role:
    """What becomes of an object in one task, and how it is drawn (colours after Okabe and Ito, safe for most eyes)."""

    name: str
    colour: Colour
    dashed: bool


VISIBLE = Role("visible", (0, 158, 115), dashed=False)
UNUSED = Role("unused: crowd or difficult", (128, 128, 128), dashed=True)
HIDDEN_OLD = Role("hidden: old class", (213, 94, 0), dashed=True)
HIDDEN_FUTURE = Role("hidden: future class", (0, 114, 178), dashed=True)
ROLES = (VISIBLE, HIDDEN_OLD, UNUSED, HIDDEN_FUTURE)


def manifest_table(manifest: Mapping[str, Any]) -> str:
    """The manifest of ``incdet.data.manifest.protocol_manifest`` as text: totals, one row per task, counts by class."""
    totals = manifest["totals"]
    lines = [
        f"{manifest['dataset']}: {totals['images']} images, {totals['objects']} objects "
        f"({totals['difficult']} difficult, {totals['crowd']} crowd), fingerprint {manifest['fingerprint'][:12]}",
        f"split {manifest['split']}, protocol {manifest['protocol']}, difficult {manifest['difficult']}, "
        f"seed {manifest['seed']}, class order {manifest['class_order']} ({manifest['class_order_hash']})",
        f"{totals['images_used']} images are used, {totals['images_repeated']} of them in more than one task",
        "",
        *_aligned([_HEADER, *(_task_row(task) for task in manifest["tasks"])]),
    ]
    for task in manifest["tasks"]:
        lines += ["", *_class_counts(task)]
    return "\n".join(lines)


def write_samples(
    dataset: DetectionDataset,
    stream: TaskStream,
    manifest: Mapping[str, Any],
    folder: str | Path,
    samples: int = 6,
) -> list[Path]:
    """Draw up to ``samples`` images of every task, evenly spread over its images, into ``folder``; returns the files.

    Raises DataError for an image that cannot be read, IncdetError for a folder that cannot be written.
    """
    records = {record.image_id: record for record in dataset.images}
    chosen = [
        (task, image_id)
        for task, entry in zip(stream, manifest["tasks"], strict=True)
        for image_id in _evenly_spread(entry["image_ids"], samples)
    ]
    paths = []
    for task, image_id in tqdm(chosen, desc="drawing samples", disable=None):
        one = replace(dataset, images=(records[image_id],))
        drawn = draw_sample(one, stream, task, manifest["difficult"])
        path = Path(folder) / f"task_{task.index}" / f"{image_id.replace('/', '_')}.jpg"
        write_atomic(path, cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1].tobytes())
        paths.append(path)
    return paths


def draw_sample(one: DetectionDataset, stream: TaskStream, task: TaskSpec, difficult: str = "keep") -> np.ndarray:
    """The single image of ``one`` with its objects drawn by their roles in ``task`` and a legend, (h, w, 3) RGB."""
    table = ObjectTable.of(one, stream.classes)
    roles = object_roles(table, task, difficult)
    record: ImageRecord = one.images[0]
    drawn = draw_boxes(
        np.ascontiguousarray(read_image(record.path).numpy().transpose(1, 2, 0)),
        record.boxes,
        [one.classes[label] for label in record.labels],
        [role.colour for role in roles],
        [role.dashed for role in roles],
    )
    return np.concatenate([drawn, _legend(drawn.shape[1])])


def object_roles(table: ObjectTable, task: TaskSpec, difficult: str) -> list[Role]:
    """What becomes of every object of the table in ``task``."""
    usable = table.usable(difficult)
    roles = []
    for label, used in zip(table.labels.tolist(), usable.tolist(), strict=True):
        if label in task.old_labels:
            roles.append(HIDDEN_OLD)
        elif label not in task.new_labels:
            roles.append(HIDDEN_FUTURE)
        else:
            roles.append(VISIBLE if used else UNUSED)
    return roles


_HEADER = ("task", "classes", "images", *(kind.replace("_", " ") for kind in KINDS), "images shared with task")


def _task_row(task: Mapping[str, Any]) -> tuple[str, ...]:
    shared = ", ".join(f"{other}: {count}" for other, count in task["shared_images"].items() if count) or "none"
    counts = (str(sum(task[kind].values())) for kind in KINDS)
    return str(task["task"]), str(len(task["classes"])), str(task["images"]), *counts, shared


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Numbers to the right; the last column is text.
    return ["  ".join([*map(str.rjust, row[:-1], widths[:-1]), row[-1]]) for row in rows]


def _class_counts(task: Mapping[str, Any]) -> list[str]:
    """The task's objects by class, and a warning for a class that cannot be learned."""
    lines = [f"task {task['task']}"]
    for kind in KINDS:
        # The wrap may break after a comma only: a no-break space keeps "dining table 3" whole.
        counts = ", ".join(f"{name} {count}".replace(" ", _NO_BREAK) for name, count in task[kind].items() if count)
        if counts:
            indent = f"  {kind.replace('_', ' '):<15}"
            wrapped = textwrap.wrap(counts, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
            lines += [line.replace(_NO_BREAK, " ") for line in wrapped]
    unseen = [name for name, count in task["visible"].items() if count == 0]
    if unseen:
        lines.append(f"  warning: no visible object of {', '.join(unseen)}")
    return lines


def _evenly_spread(items: Sequence[str], count: int) -> list[str]:
    positions = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[position] for position in positions]


def _legend(width: int) -> np.ndarray:
    """A strip (h, width, 3) that explains the boxes, two roles to a row."""
    scale = max(0.5, width / 1000)
    row, margin = round(44 * scale), round(10 * scale)
    corners = [(column * width // 2 + margin, line * row + margin) for line in range(2) for column in range(2)]
    boxes = np.array([(x, y, x + 2 * (row - 2 * margin), y + row - 2 * margin) for x, y in corners])
    strip = np.full((2 * row, width, 3), 255, dtype=np.uint8)
    colours, dashed = [role.colour for role in ROLES], [role.dashed for role in ROLES]
    strip = draw_boxes(strip, boxes, [""] * len(ROLES), colours, dashed, min_side=1)
    for role, (_, _, x2, y2) in zip(ROLES, boxes.tolist(), strict=True):
        cv2.putText(strip, role.name, (x2 + margin, y2 - margin // 2), FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
