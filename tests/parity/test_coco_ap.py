"""COCO AP per class averages to what pycocotools itself prints."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_sets import random_set

from incdet.data.coco import to_coco
from incdet.evaluation.coco_ap import coco_ap


def stock_stats(data, found):
    """AP, AP50 and AP75 by COCOeval as it comes, all area ranges and limits included."""
    truth = COCO()
    truth.dataset = to_coco(data)
    truth.createIndex()
    detections = truth.loadRes(
        [
            {
                "image_id": found.image_ids[image],
                "category_id": int(label) + 1,
                "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                "score": float(score),
            }
            for image, label, box, score in zip(
                found.image_index, found.labels, found.boxes.astype(np.float64), found.scores, strict=True
            )
        ]
    )
    evaluation = COCOeval(truth, detections, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:3]


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed):
    data, found = random_set(seed, difficult=0.0, crowd=0.15)
    ours = coco_ap(data, found)
    means = [np.mean(list(per_class.values())) for per_class in (ours.ap, ours.ap50, ours.ap75)]
    np.testing.assert_allclose(means, stock_stats(data, found), atol=1e-12)


def test_difficult_is_not_what_stock_pycocotools_counts():
    data, found = random_set(0, difficult=0.4)
    assert np.mean(list(coco_ap(data, found).ap.values())) != pytest.approx(stock_stats(data, found)[0], abs=1e-3)
