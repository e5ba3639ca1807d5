"""Pictures of two coloured shapes, one in each half, in VOC layout."""

import cv2
import numpy as np

from incdet.data.records import ImageRecord
from incdet.data.voc import write_annotation

SIZE = 64
CLASSES = ("disc", "bar", "ring")
COLOURS = {"disc": (230, 60, 60), "bar": (60, 200, 60), "ring": (70, 90, 240)}


def draw(rng, names):
    """A picture (64, 64, 3) and tight boxes: one shape in the left half, one in the right."""
    image = rng.integers(90, 130, (SIZE, SIZE, 3)).astype(np.uint8)
    boxes = []
    for place, name in enumerate(names):
        side = int(rng.integers(16, 26))
        x, y = place * 32 + int(rng.integers(1, 31 - side)), int(rng.integers(2, 62 - side))
        centre = (x + side // 2, y + side // 2)
        if name == "bar":
            cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), COLOURS[name], -1)
        else:
            cv2.circle(image, centre, side // 2 - 1, COLOURS[name], -1 if name == "disc" else 4)
        boxes.append((x, y, x + side, y + side))
    return image, boxes


def write_folder(root, count, labelled, seed=0, split=None, present=CLASSES):
    """``count`` pictures of two shapes each in VOC layout; only ``labelled`` classes are in the annotations."""
    rng = np.random.default_rng(seed)
    (root / "JPEGImages").mkdir(parents=True)
    ids = [f"im{number:03d}" for number in range(count)]
    for image_id in ids:
        names = [str(name) for name in rng.choice(present, 2)]
        image, boxes = draw(rng, names)
        path = root / "JPEGImages" / f"{image_id}.png"
        cv2.imwrite(str(path), image[:, :, ::-1])
        kept = [index for index, name in enumerate(names) if name in labelled]
        no = np.zeros(len(kept), dtype=bool)
        corners = np.array([boxes[index] for index in kept], dtype=np.float32).reshape(-1, 4)
        labels = np.array([CLASSES.index(names[index]) for index in kept], dtype=np.int64)
        write_annotation(root, ImageRecord(image_id, path, SIZE, SIZE, corners, labels, no, no), CLASSES)
    if split is not None:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root
