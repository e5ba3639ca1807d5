"""What every backend adds to its library: ignored boxes, weights, growing, teachers' passes, slots."""

import pytest
import torch
from tiny import one_image, random_batch, random_images
from torchvision.models.detection import FasterRCNN

from incdet.backends.matching import lies_on
from incdet.structures import IGNORED, Batch


def share_on(regions: torch.Tensor, box) -> torch.Tensor:
    """How much of each region's own area lies on a box, one region at a time."""
    shares = []
    for x1, y1, x2, y2 in regions.tolist():
        width = min(x2, box[2]) - max(x1, box[0])
        height = min(y2, box[3]) - max(y1, box[1])
        shares.append(max(width, 0) * max(height, 0) / max((x2 - x1) * (y2 - y1), 1e-6))
    return torch.tensor(shares)


# ---------------------------------------------------------------------- shapes


def test_outputs_have_the_shapes_of_the_glossary(detector):
    batch = random_batch(2)
    images = detector.image_pass(batch)
    regions = detector.region_pass(images)
    anchors = len(images.anchors[0])
    assert images.objectness.shape == images.anchor_labels.shape == (2, anchors)
    assert images.anchor_deltas.shape == images.anchor_targets.shape == (2, anchors, 4)
    count, boxes_per_region = len(regions.boxes), 1 if detector.class_agnostic else 2
    assert regions.logits.shape == (count, 3)
    assert regions.deltas.shape == (count, boxes_per_region, 4)
    assert regions.labels.shape == regions.weights.shape == regions.image_index.shape == (count,)
    assert regions.delta_targets.shape == (count, 4)
    assert [len(boxes) for boxes in regions.boxes_per_image(2)] == regions.image_index.bincount(minlength=2).tolist()
    assert set(regions.labels.tolist()) <= {0, 1, 2}
    assert (regions.labels == 2).any()


def test_the_boxes_that_come_with_the_image_are_among_its_positive_regions(detector):
    batch = one_image([[8, 8, 40, 40], [50, 20, 90, 60]], [1, 0])
    regions = detector.region_pass(detector.image_pass(batch))
    for box, label in zip(batch.targets[0].boxes, (1, 0), strict=True):
        same = (regions.boxes - box).abs().amax(dim=1) < 1e-3
        assert regions.labels[same].tolist() == [label]


def test_given_boxes_are_used_as_they_are_and_get_no_labels(detector):
    images = detector.image_pass(random_batch(2))
    boxes = [torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.zeros(0, 4)]
    regions = detector.region_pass(images, boxes)
    assert torch.equal(regions.boxes, boxes[0])
    assert regions.image_index.tolist() == [0]
    assert regions.labels is regions.weights is regions.delta_targets is None


# ---------------------------------------------------------------------- ignored boxes and weights


def test_lying_on_a_box_is_a_share_of_the_regions_own_area():
    regions = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [0, 0, 100, 100], [0, 0, 2, 2]])
    ignored = torch.tensor([[0.0, 0, 10, 10], [200, 200, 300, 300]])
    assert lies_on(regions, ignored).tolist() == [True, True, False, False, True]
    assert lies_on(regions, torch.zeros(0, 4)).tolist() == [False] * 5


IGNORED_BOX = [40, 8, 96, 56]


@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_a_box_that_no_stage_uses_makes_no_negative_on_it(detector, stage):
    seen = {True: 0, False: 0}
    for used in (True, False):
        # A used box keeps only the well placed from being negative; an unused one keeps away all that lie on it.
        batch = one_image([[4, 4, 30, 30], IGNORED_BOX], [0, 1], use_rpn=[True, used], use_roi=[True, used])
        for seed in range(8):
            torch.manual_seed(seed)
            images = detector.image_pass(batch)
            regions = detector.region_pass(images)
            negatives = {
                "rpn": images.anchors[0][images.anchor_labels[0] == 0],
                "roi": regions.boxes[regions.labels == detector.num_classes],
            }[stage]
            assert len(negatives)
            seen[used] += int((share_on(negatives, IGNORED_BOX) >= 0.51).sum())
    assert seen[False] == 0
    assert seen[True] > 0


def test_a_box_that_no_stage_uses_is_no_positive_either(detector):
    batch = one_image([IGNORED_BOX], [1], use_rpn=[False], use_roi=[False])
    images = detector.image_pass(batch)
    regions = detector.region_pass(images)
    assert not (images.anchor_labels == 1).any()
    assert (regions.labels == detector.num_classes).all()
    assert all(torch.isfinite(value) for value in detector.losses(images, regions).values())


def test_each_stage_has_its_own_targets(detector):
    box = [16, 8, 64, 56]
    only_rpn = one_image([box], [1], use_rpn=[True], use_roi=[False])
    only_roi = one_image([box], [1], use_rpn=[False], use_roi=[True])
    for batch, in_rpn in ((only_rpn, True), (only_roi, False)):
        images = detector.image_pass(batch)
        regions = detector.region_pass(images)
        assert bool((images.anchor_labels == 1).any()) is in_rpn
        assert bool((regions.labels == 1).any()) is not in_rpn


def test_a_positive_stays_positive_on_an_ignored_box(detector):
    box = [16.0, 8.0, 64.0, 56.0]
    batch = one_image([box, [10, 0, 70, 64]], [1, 0], use_rpn=[True, False], use_roi=[True, False])
    images = detector.image_pass(batch)
    regions = detector.region_pass(images)
    assert (images.anchor_labels == 1).any()
    assert (regions.labels == 1).any()
    assert not (regions.labels == 0).any()


def test_weights_follow_the_matched_box_and_background_has_one(detector):
    batch = one_image([[4, 4, 36, 36], [50, 20, 90, 60]], [0, 1], weights=[0.25, 3.0])
    regions = detector.region_pass(detector.image_pass(batch))
    expected = torch.tensor([0.25, 3.0, 1.0])[regions.labels]
    assert regions.labels.unique().tolist() == [0, 1, 2]
    assert torch.equal(regions.weights, expected)


def test_anchors_that_were_not_sampled_are_marked_ignored(detector, cfg):
    images = detector.image_pass(random_batch(2))
    sampled = (images.anchor_labels != IGNORED).sum(dim=1)
    assert images.anchor_labels.shape[1] > cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE
    assert (sampled == cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE).all()


# ---------------------------------------------------------------------- growing


def class_rows(detector) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases of the logits, background last; torchvision keeps it first."""
    layer = detector.roi_heads.box_predictor.cls_score
    shift = -1 if isinstance(detector, FasterRCNN) else 0
    return layer.weight.detach().roll(shift, 0), layer.bias.detach().roll(shift, 0)


@pytest.mark.parametrize("counts", [(1,), (3,), (1, 2)])
def test_growing_keeps_old_logits_background_and_boxes_to_the_bit(detector, counts):
    detector.eval()
    before = [rows.clone() for rows in class_rows(detector)]
    images = detector.image_pass(Batch(random_images(1), None))
    with torch.no_grad():
        old = detector.region_pass(images)
        for count in counts:
            detector.expand_classes(count)
        new = detector.region_pass(images, [old.boxes])
    assert detector.num_classes == 2 + sum(counts)
    assert new.logits.shape[1] == 3 + sum(counts)
    for old_rows, new_rows in zip(before, class_rows(detector), strict=True):
        assert torch.equal(new_rows[:2], old_rows[:2])
        assert torch.equal(new_rows[-1], old_rows[-1])
    # The weights keep their bits; a product of another size may still round differently.
    kept = torch.cat([new.logits[:, :2], new.logits[:, -1:]], dim=1)
    torch.testing.assert_close(kept, old.logits, rtol=1e-6, atol=1e-6)
    old_boxes = old.deltas.shape[1]
    assert new.deltas.shape[1] == (1 if detector.class_agnostic else detector.num_classes)
    torch.testing.assert_close(new.deltas[:, :old_boxes], old.deltas, rtol=1e-6, atol=1e-6)


def test_a_grown_detector_learns_the_new_class(detector):
    detector.expand_classes(1)
    images = detector.image_pass(one_image([[8, 8, 50, 50]], [2]))
    regions = detector.region_pass(images)
    sum(detector.losses(images, regions).values()).backward()
    assert (regions.labels == 2).any()
    row = 3 if isinstance(detector, FasterRCNN) else 2
    assert detector.roi_heads.box_predictor.cls_score.weight.grad[row].any()


# ---------------------------------------------------------------------- cutting, and beginning as background


def test_dropping_classes_keeps_the_logits_and_boxes_of_the_others(detector):
    detector.expand_classes(2)
    features = torch.rand(5, detector.classifier.in_features)
    logits, deltas = detector.predictor(features)
    detector.drop_classes(3)
    assert detector.num_classes == 1
    kept_logits, kept_deltas = detector.predictor(features)
    assert torch.allclose(kept_logits, logits[:, 3:], atol=1e-6)
    assert torch.allclose(kept_deltas, deltas if detector.class_agnostic else deltas[:, 3:], atol=1e-6)


def test_the_classifiers_rows_make_the_logits(detector):
    features = torch.rand(5, detector.classifier.in_features)
    rows = detector.classifier(features)[:, detector.classifier_rows]
    assert torch.allclose(rows, detector.predictor(features)[0])


def test_classes_that_start_from_background_share_its_probability(detector):
    features = torch.rand(5, detector.classifier.in_features)
    torch.nn.init.normal_(detector.classifier.bias)
    before = detector.predictor(features)[0].softmax(dim=1)
    detector.expand_classes(3)
    detector.start_from_background(3)
    after = detector.predictor(features)[0].softmax(dim=1)
    assert torch.allclose(after[:, :2], before[:, :2], atol=1e-6)
    assert torch.allclose(after[:, 2:], before[:, 2:].expand(-1, 4) / 4, atol=1e-6)


def test_the_box_head_is_what_makes_region_features(detector):
    parts = {id(p) for p in detector.box_head.parameters()}
    outputs = detector.image_pass(Batch(random_images(1), None))
    detector.box_features(detector.pool(outputs, [torch.tensor([[4.0, 4, 40, 40]])])).sum().backward()
    reached = {id(p) for p in detector.parameters() if p.grad is not None}
    assert parts
    assert parts <= reached | {id(p) for p in detector.parameters() if not p.requires_grad}
    assert id(detector.classifier.weight) not in parts


def test_no_region_at_all_has_no_logits(detector):
    logits, deltas = detector.predictor(torch.zeros(0, detector.classifier.in_features))
    assert logits.shape == (0, 3)
    assert deltas.shape == (0, 1 if detector.class_agnostic else 2, 4)
