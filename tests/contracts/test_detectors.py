"""What every backend adds to its library: ignored boxes, weights, growing, teachers' passes, slots."""

import copy

import pytest
import torch
from tiny import HEIGHT, WIDTH, random_batch, random_images, tiny_config, tiny_detector
from torchvision.models.detection import FasterRCNN

from incdet.backends.matching import lies_on
from incdet.errors import ConfigError
from incdet.structures import IGNORED, Batch, Target

AGNOSTIC = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
BUILDS = {"fpn": ("fpn",), "c4": ("c4",), "fpn-agnostic": ("fpn", *AGNOSTIC), "c4-agnostic": ("c4", *AGNOSTIC)}
BACKENDS = [pytest.param("torchvision"), pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=BUILDS.values(), ids=BUILDS.keys())
def cfg(request, backend):
    return tiny_config(*request.param, "BACKEND", backend)


@pytest.fixture
def detector(cfg):
    return tiny_detector(cfg).train()


def one_image(boxes, labels, use_rpn=None, use_roi=None, weights=None) -> Batch:
    target = Target.from_boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels))
    given = {"use_rpn": use_rpn, "use_roi": use_roi, "weights": weights}
    fields = {name: torch.tensor(value) for name, value in given.items() if value is not None}
    return Batch(random_images(1), [Target(**{**vars(target), **fields})])


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


# ---------------------------------------------------------------------- another detector's images


def test_a_copy_that_looks_at_the_same_images_sees_the_same(detector):
    detector.eval()
    twin = copy.deepcopy(detector)
    with torch.no_grad():
        images = detector.image_pass(random_batch(2))
        for share in (False, True):
            looked = twin.image_pass_like(images, share)
            assert looked.targets is None
            assert torch.equal(looked.objectness, images.objectness)
            assert torch.equal(looked.anchor_deltas, images.anchor_deltas)
            assert all(torch.equal(looked.features[level], images.features[level]) for level in images.features)
            assert all(map(torch.equal, looked.proposals, images.proposals))


def test_frozen_stages_are_shared_only_where_they_exist_and_are_equal(detector):
    twin = copy.deepcopy(detector)
    assert detector.shares_frozen_stages_with(twin)
    twin.expand_classes(1)
    twin.roi_heads.requires_grad_(False)
    assert detector.shares_frozen_stages_with(twin)
    torch.nn.init.zeros_(twin.backbone.body["conv1"].weight)
    assert not detector.shares_frozen_stages_with(twin)

    deeper = copy.deepcopy(detector)
    deeper.freeze(3, norm=False)
    assert not detector.shares_frozen_stages_with(deeper)
    open_one, other = copy.deepcopy(detector), copy.deepcopy(detector)
    for one in (open_one, other):
        one.freeze(0, norm=False)
    assert open_one.frozen_state() == {}
    assert not open_one.shares_frozen_stages_with(other)


def test_a_frozen_stage_whose_norm_statistics_differ_is_not_shared(detector):
    twin = copy.deepcopy(detector)
    twin.backbone.body["bn1"].running_mean += 1
    assert not detector.shares_frozen_stages_with(twin)


# ---------------------------------------------------------------------- modes


def train_a_little(detector) -> None:
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    images = detector.image_pass(random_batch(2))
    sum(detector.losses(images, detector.region_pass(images)).values()).backward()
    optimizer.step()


def test_frozen_stages_keep_their_bits_while_the_others_learn(detector):
    frozen = {name: value.clone() for name, value in detector.frozen_state().items()}
    state = copy.deepcopy(detector.state_dict())
    train_a_little(detector)
    assert any("running_mean" in name for name in frozen)
    for name, value in detector.frozen_state().items():
        assert torch.equal(value, frozen[name]), name
    later = "backbone.body.layer3.0."
    assert not torch.equal(detector.state_dict()[f"{later}conv1.weight"], state[f"{later}conv1.weight"])
    assert not torch.equal(detector.state_dict()[f"{later}bn1.running_mean"], state[f"{later}bn1.running_mean"])


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_frozen_norms_keep_statistics_and_affine_parameters_everywhere(neck, backend):
    detector = tiny_detector(tiny_config(neck, "BACKEND", backend, "MODEL.BACKBONE.FREEZE_NORM", True)).train()
    before = copy.deepcopy(detector.state_dict())
    train_a_little(detector)
    after = detector.state_dict()
    norms = [name for name in before if ".bn" in name or "downsample.1" in name]
    assert norms
    assert all(torch.equal(after[name], before[name]) for name in norms)


def test_prediction_leaves_the_mode_as_it_found_it(detector):
    for mode in (True, False):
        detector.train(mode)
        detector.predict(random_images(1))
        assert detector.training is mode
        assert detector.backbone.body["layer3"].training is mode
    assert all(p.grad is None for p in detector.parameters())


def test_test_images_have_their_own_size(backend):
    cfg = tiny_config("fpn", "BACKEND", backend, "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 48)
    detector = tiny_detector(cfg)
    assert detector.train().image_pass(random_batch(1)).image_sizes == [(32, 48)]
    assert detector.eval().image_pass(random_batch(1)).image_sizes == [(48, 72)]


def test_targets_follow_the_resized_image(backend):
    detector = tiny_detector(tiny_config("fpn", "BACKEND", backend, "INPUT.MIN_SIZE_TRAIN", (32,))).train()
    batch = one_image([[8, 16, 40, 48]], [1])
    images = detector.image_pass(batch)
    assert images.targets[0].boxes.tolist() == [[4, 8, 20, 24]]
    assert batch.targets[0].boxes.tolist() == [[8, 16, 40, 48]]


# ---------------------------------------------------------------------- prediction


def test_detections_are_in_the_pixels_of_the_original_image(detector):
    small, large = torch.rand(3, HEIGHT // 2, WIDTH // 2), torch.rand(3, 2 * HEIGHT, 2 * WIDTH)
    for image, found in zip((small, large), detector.predict([small, large]), strict=True):
        height, width = image.shape[-2:]
        assert len(found) > 0
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 0::2] <= width).all()
        assert (found.boxes[:, 1::2] <= height).all()
        assert found.boxes[:, 2].max() > width / 2
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert set(found.labels.tolist()) <= {0, 1}


def test_region_features_take_boxes_in_the_images_own_pixels(detector):
    detector.eval()
    images = [torch.rand(3, 2 * HEIGHT, 2 * WIDTH), torch.rand(3, HEIGHT, WIDTH)]
    boxes = [torch.tensor([[20.0, 20.0, 80.0, 100.0], [0.0, 0.0, 50.0, 50.0]]), torch.zeros(0, 4)]
    with torch.no_grad():
        found = detector.region_features(images, boxes)
        outputs = detector.image_pass(Batch(images, None))
        expected = detector.region_pass(outputs, [boxes[0] / 2, boxes[1]]).features
    assert [len(one) for one in found] == [2, 0]
    torch.testing.assert_close(found[0], expected)


def test_the_aligners_slot_changes_what_the_predictor_reads(detector):
    detector.eval()
    images = detector.image_pass(Batch(random_images(1), None))
    plain = detector.region_pass(images)
    calls = []

    def flatten(*arguments):
        calls.append(arguments)
        return torch.zeros_like(arguments[0])

    detector.region_transform = flatten
    aligned = detector.region_pass(images)
    ((features, predictor),) = calls
    assert torch.equal(features, plain.features)
    assert not aligned.features.any()
    assert torch.equal(aligned.logits, predictor(torch.zeros_like(features))[0])


def test_another_reading_replaces_the_logits_at_prediction_only(detector):
    batch = random_batch(1)

    def always_class_one(features, predictor):
        logits = torch.full((len(features), 3), -20.0)
        logits[:, 1] = 20.0
        return logits

    images = detector.image_pass(batch)
    boxes = detector.region_pass(images).boxes_per_image(1)
    before = detector.region_pass(images, boxes).logits
    detector.read_out = always_class_one
    assert torch.equal(detector.region_pass(images, boxes).logits, before)
    (found,) = detector.predict(batch.images)
    confident = found.above(0.99)
    assert len(confident) > 0
    assert set(confident.labels.tolist()) == {1}


# ---------------------------------------------------------------------- configuration


def test_mobilenet_detects_too(backend):
    cfg = tiny_config("fpn", "BACKEND", backend, "MODEL.BACKBONE.NAME", "mobilenet_v2", "MODEL.BACKBONE.WIDTH", 64)
    detector = tiny_detector(cfg)
    train_a_little(detector.train())
    assert len(detector.predict(random_images(1))) == 1


def test_channels_in_the_other_order_are_the_same_picture(backend):
    """BGR with mean, deviation and first convolution turned round sees what RGB sees."""
    mean, deviation = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    pixels = "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", deviation
    turned = "MODEL.PIXEL_MEAN", mean[::-1], "MODEL.PIXEL_STD", deviation[::-1], "INPUT.FORMAT", "BGR"
    rgb = tiny_detector(tiny_config("fpn", "BACKEND", backend, *pixels)).eval()
    bgr = tiny_detector(tiny_config("fpn", "BACKEND", backend, *turned)).eval()
    stem = bgr.backbone.body["conv1"].weight
    stem.data = stem.data.flip(1)
    images, boxes = random_images(1), [torch.tensor([[10.0, 10.0, 50.0, 40.0]])]
    with torch.no_grad():
        for one, other in zip(rgb.region_features(images, boxes), bgr.region_features(images, boxes), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        passes = [detector.image_pass(Batch(images, None)).objectness for detector in (rgb, bgr)]
    torch.testing.assert_close(*passes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.NECK", "dc5"), r"MODEL\.NECK: expected fpn or c4, got 'dc5'"),
        (("INPUT.FORMAT", "HSV"), r"INPUT\.FORMAT: expected RGB or BGR, got 'HSV'"),
        (("MODEL.BACKBONE.NORM", "GN"), r"MODEL\.BACKBONE\.NORM: expected one of BN, FrozenBN, none, got 'GN'"),
    ],
)
def test_a_model_that_cannot_be_built_names_the_key(backend, overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny_detector(tiny_config("fpn", "BACKEND", backend, *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.ANCHOR_GENERATOR.SIZES", ((32,), (64,))), r"MODEL\.ANCHOR_GENERATOR\.SIZES: expected 5 tuple.*got 2"),
        (("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ((1.0,),) * 2), r"ASPECT_RATIOS: expected 1 or 5 tuple.*got 2"),
        (("BACKEND", "mmdet"), r"BACKEND: expected one of torchvision.*'mmdet'"),
    ],
)
def test_torchvision_refuses_what_it_cannot_build(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny_detector(tiny_config("fpn", *overrides))


def test_c4_needs_a_resnet(backend):
    cfg = tiny_config("c4", "BACKEND", backend, "MODEL.BACKBONE.NAME", "mobilenet_v2", "MODEL.BACKBONE.WIDTH", 64)
    with pytest.raises(ConfigError, match=r"MODEL\.NECK c4 needs a ResNet.*mobilenet_v2"):
        tiny_detector(cfg)
