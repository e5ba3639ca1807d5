"""What every backend keeps to around a step: a teacher's look, modes, prediction, slots, configuration."""

import copy

import pytest
import torch
from tiny import HEIGHT, WIDTH, one_image, random_batch, random_images, tiny_config, tiny_detector

from incdet.errors import ConfigError
from incdet.structures import Batch

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
