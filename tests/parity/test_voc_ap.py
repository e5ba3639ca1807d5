"""VOC AP equals Detectron2's PascalVOCDetectionEvaluator, which reads XML and passes detections through text."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from random_sets import random_set

from incdet.data.records import DetectionDataset, ImageRecord
from incdet.evaluation.predictions import Predictions
from incdet.evaluation.voc_ap import COCO_IOUS, voc_ap

pytestmark = pytest.mark.detectron2
evaluation = pytest.importorskip("detectron2.evaluation", reason="detectron2 is not installed")

OBJECT = (
    "<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{}</difficult><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_voc(folder, data):
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for image in data.images:
        rows = zip(image.labels, image.difficult, image.boxes.astype(int) + [1, 1, 0, 0], strict=True)
        objects = "".join(OBJECT.format(data.classes[label], int(hard), *box) for label, hard, box in rows)
        (folder / "Annotations" / f"{image.image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(image.image_id for image in data.images))


def detectron2_ap(folder, data, found, year):
    from detectron2.data import MetadataCatalog
    from detectron2.structures import Boxes, Instances

    name = f"parity_{folder}_{year}"
    MetadataCatalog.get(name).set(dirname=str(folder), split="test", year=year, thing_classes=list(data.classes))
    evaluator = evaluation.PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for position, image in enumerate(data.images):
        mine = torch.from_numpy(found.image_index == position)
        instances = Instances((image.height, image.width))
        instances.pred_boxes = Boxes(torch.from_numpy(found.boxes)[mine])
        instances.scores = torch.from_numpy(found.scores)[mine]
        instances.pred_classes = torch.from_numpy(found.labels)[mine]
        evaluator.process([{"image_id": image.image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def our_ap(data, found, year):
    result = voc_ap(data, found, ious=COCO_IOUS, convention="detectron2")
    by_iou = 100 * (result.eleven_point if year == 2007 else result.area).mean(axis=0)
    return {"AP": by_iou.mean(), "AP50": by_iou[0], "AP75": by_iou[COCO_IOUS.index(0.75)]}


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(8))
def test_equals_detectron2(tmp_path, seed, year):
    data, found = random_set(seed)
    write_voc(tmp_path, data)
    assert our_ap(data, found, year) == pytest.approx(detectron2_ap(tmp_path, data, found, year), abs=1e-6)


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(4))
def test_equals_detectron2_on_ties_once_its_sort_is_stable(tmp_path, monkeypatch, seed, year):
    data, found = random_set(seed, tied=True)
    write_voc(tmp_path, data)
    with monkeypatch.context() as patched:
        patched.setattr(np, "argsort", functools.partial(np.argsort, kind="stable"))
        theirs = detectron2_ap(tmp_path, data, found, year)
    assert our_ap(data, found, year) == pytest.approx(theirs, abs=1e-6)


def test_an_overlap_of_exactly_half_is_a_miss_there_and_a_hit_in_the_devkit(tmp_path):
    boxes = np.array([[0, 0, 20, 20]], dtype=np.float32)
    nothing = np.zeros(1, dtype=bool)
    image = ImageRecord("000001", tmp_path, 50, 50, boxes, np.array([0]), nothing, nothing)
    data = DetectionDataset("half", ("bird",), (image,))
    half = np.array([[0, 0, 20, 10]], dtype=np.float32)
    found = Predictions(("000001",), ("bird",), np.array([0]), half, np.array([0.5], np.float32), np.array([0]))
    write_voc(tmp_path, data)
    assert detectron2_ap(tmp_path, data, found, 2012)["AP50"] == our_ap(data, found, 2012)["AP50"] == 0
    assert voc_ap(data, found).area[0, 0] == 1
