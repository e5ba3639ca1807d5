"""A classifier keeps to the detector's interface, with the whole image as its only region and no background."""

import pytest
import torch
from tiny import World, random_images, tiny_config, tiny_detector
from torch.nn import functional as F

from incdet.backends import build_detector
from incdet.backends.base import Detector
from incdet.config.node import CfgNode
from incdet.engine.learner import freeze_copy
from incdet.errors import ConfigError, DataError, MethodError
from incdet.methods import build_methods, method_names
from incdet.structures import Batch, Target
from incdet.tasks import build_stream

FIRST, SECOND = build_stream("2+2", ("a", "b", "c", "d"))
CHOICES = {
    "linear": (),
    "cosine": ("MODEL.CLASSIFIER.HEAD", "cosine"),
    "heads": ("MODEL.CLASSIFIER.MULTI_HEAD", True),
    "mlp": ("MODEL.BACKBONE.NAME", "mlp"),
}
NEEDS = {  # what a method refuses to run without
    "gpm": ("MODEL.CLASSIFIER.HEAD", "linear"),
    "hat": ("MODEL.CLASSIFIER.MULTI_HEAD", True, "MODEL.BACKBONE.NORM", "none"),
    "lucir": ("MODEL.CLASSIFIER.HEAD", "cosine"),
    "mbpa": ("MODEL.CLASSIFIER.HEAD", "linear"),
}
SHORT = {  # stages
    "distill_retrospect": ("METHOD.DISTILL_RETROSPECT.EXPERT_ITERATIONS", 1),
    "lwf": ("METHOD.LWF.WARMUP_ITER", 1),
    "mnemonics": ("METHOD.MNEMONICS.EPOCHS", 1),
}
TEXTS = ("a", "b", "c", "d")  # an image with one object of each class


def classification(*overrides) -> CfgNode:
    keys = ("TASK", "classification", "TASKS.SPLIT", "2+2", "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32)
    return tiny_config("fpn", *keys, *overrides)


def classifier(*overrides, classes: int = 2) -> Detector:
    return tiny_detector(classification(*overrides), classes).train()


@pytest.fixture(params=CHOICES.values(), ids=CHOICES.keys())
def model(request):
    return classifier(*request.param)


def batch(*labels: int) -> Batch:
    targets = [Target.from_boxes(torch.tensor([[0.0, 0, 96, 64]]), torch.tensor([label])) for label in labels]
    return Batch(random_images(len(labels)), targets)


def logits_of(model: Detector, images: Batch) -> torch.Tensor:
    return model.region_pass(model.image_pass(images)).logits


def test_every_image_is_one_region_without_a_background(model):
    images = model.image_pass(batch(1, 0, 1))
    regions = model.region_pass(images)
    assert regions.logits.shape == (3, 2)
    assert regions.deltas.shape == (3, 0, 4)
    assert regions.labels.tolist() == [1, 0, 1]
    assert regions.image_index.tolist() == [0, 1, 2]
    assert regions.boxes.tolist() == [[0.0, 0.0, 32.0, 32.0]] * 3
    assert regions.features.shape == (3, model.classifier.in_features)


def test_the_loss_is_cross_entropy_and_weights_count(model):
    images = model.image_pass(batch(1, 0))
    regions = model.region_pass(images)
    expected = F.cross_entropy(regions.logits, torch.tensor([1, 0]))
    assert torch.allclose(model.losses(images, regions)["loss_cls"], expected)
    assert model.losses(images, regions, skip=("loss_cls",)) == {}
    regions.weights[1] = 0.0
    alone = F.cross_entropy(regions.logits[:1], torch.tensor([1])) / 2
    assert torch.allclose(model.losses(images, regions)["loss_cls"], alone)


def test_a_batch_has_one_of_several_sizes():
    model = classifier("INPUT.MIN_SIZE_TRAIN", (32, 48, 64))
    torch.manual_seed(0)
    sizes = [model.image_pass(batch(0, 1)).image_sizes for _ in range(20)]
    assert all(first == second for first, second in sizes)
    assert {side for (side, _), _ in sizes} == {32, 48, 64}
    assert model.eval().image_pass(batch(0)).image_sizes == [(32, 32)]


def test_heads_compete_among_their_own_classes_only():
    model = classifier("MODEL.CLASSIFIER.MULTI_HEAD", True)
    model.expand_classes(2)
    images = model.image_pass(batch(3, 0))
    regions = model.region_pass(images)
    parts = (
        F.cross_entropy(regions.logits[:1, 2:], torch.tensor([1])),
        F.cross_entropy(regions.logits[1:, :2], torch.tensor([0])),
    )
    assert torch.allclose(model.losses(images, regions)["loss_cls"], sum(parts) / 2)
    for found in model.predict(random_images(2)):
        assert found.scores[found.labels < 2].sum().item() == pytest.approx(1.0)
        assert found.scores[found.labels >= 2].sum().item() == pytest.approx(1.0)


def test_a_model_that_is_built_anew_has_the_heads_of_its_tasks():
    assert classifier("MODEL.CLASSIFIER.MULTI_HEAD", True, classes=4).heads == [2, 2]
    assert classifier("MODEL.CLASSIFIER.MULTI_HEAD", True, classes=2).heads == [2]
    assert classifier("MODEL.CLASSIFIER.MULTI_HEAD", True, classes=3).heads == [3]
    assert classifier(classes=4).heads == [4]


def test_growing_keeps_the_old_logits(model):
    model.eval()
    before = logits_of(model, batch(0, 1))
    model.expand_classes(2)
    assert model.num_classes == 4
    assert torch.allclose(logits_of(model, batch(0, 1))[:, :2], before, atol=1e-6)


def test_a_cosine_head_sees_directions_only():
    head = classifier("MODEL.CLASSIFIER.HEAD", "cosine").head
    features = torch.rand(3, head.in_features)
    assert torch.allclose(head(features), head(5 * features), atol=1e-6)
    expected = F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    assert torch.allclose(head(features), expected, atol=1e-6)
    with torch.no_grad():
        head.scale.fill_(3.0)
    assert torch.allclose(head(features), 3 * expected, atol=1e-5)


def test_predictions_rank_every_class_and_take_no_targets(model):
    images = random_images(2)
    for image, found in zip(images, model.predict(images), strict=True):
        assert sorted(found.labels.tolist()) == [0, 1]
        assert (found.scores.diff() <= 0).all()
        assert found.boxes.tolist() == [[0.0, 0.0, *reversed([float(s) for s in image.shape[-2:]])]] * 2


def test_a_teacher_sees_what_the_student_sees(model):
    model.eval()
    twin = freeze_copy(model)
    images = model.image_pass(batch(0, 1))
    assert torch.equal(twin.region_pass(twin.image_pass_like(images)).logits, logits_of(model, batch(0, 1)))


def test_frozen_stages_are_shared():
    model = classifier()
    model.freeze(2, norm=True)
    images = model.image_pass(batch(0, 1))
    twin = freeze_copy(model)
    assert twin.shares_frozen_stages_with(model)
    shared, own = (twin.image_pass_like(images, share).features["res5"] for share in (True, False))
    assert torch.equal(shared, own)


def test_region_features_are_the_images(model):
    images = random_images(2)
    features = model.region_features(images, [torch.zeros(1, 4), torch.zeros(2, 4)])
    assert [len(rows) for rows in features] == [1, 2]
    assert torch.equal(features[1][0], features[1][1])


def test_an_image_with_several_labels_is_refused():
    model = classifier().eval()
    target = Target.from_boxes(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]]), torch.tensor([0, 1]))
    images = model.image_pass(Batch(random_images(1), [target]))
    with pytest.raises(DataError, match="several labels"):
        model.region_pass(images)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.CLASSIFIER.HEAD", "cubic"), r"MODEL\.CLASSIFIER\.HEAD: expected one of linear, cosine, got 'cubic'"),
        (("TASK", "segmentation"), "TASK: expected one of detection, classification, got 'segmentation'"),
    ],
)
def test_what_cannot_be_built_names_the_key(overrides, message):
    with pytest.raises(ConfigError, match=message):
        classifier(*overrides)


def test_a_classifier_is_of_no_library():
    cfg = tiny_config("fpn", "TASK", "classification")
    cfg.BACKEND = "detectron2"
    with pytest.raises(ConfigError, match="leave BACKEND at torchvision"):
        build_detector(cfg, 2)


@pytest.mark.parametrize("overrides", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("name", method_names("classification"))
def test_methods_for_classification_take_a_step(tmp_path, overrides, name):
    cfg = classification(*overrides, *NEEDS.get(name, ()), *SHORT.get(name, ()), "METHODS", (name,))
    world, methods = World(tmp_path, cfg, TEXTS), build_methods(cfg)
    world.begin_first(methods)
    for method in methods:
        method.refine(world.context(FIRST))
    learner, _ = world.begin_second(methods)
    losses = learner(batch(2, 3))
    assert "loss_cls" in losses
    sum(losses.values()).backward()
    assert learner.student.head.weight.grad[2:].any()


@pytest.mark.parametrize("name", sorted(set(method_names()) - set(method_names("classification"))))
def test_methods_for_detection_alone_are_refused(name):
    cfg = tiny_config("fpn", "TASK", "classification", "METHODS", (name,))
    with pytest.raises(MethodError, match=f"{name} works on detection, not on classification"):
        build_methods(cfg)


def test_slots_change_what_the_head_reads():
    model = classifier().eval()
    with torch.no_grad():
        model.head.bias.zero_()
    plain = logits_of(model, batch(0))
    model.region_transform = lambda features, predictor: 2 * features
    assert torch.allclose(logits_of(model, batch(0)), 2 * plain, atol=1e-6)
    model.read_out = lambda features, predictor: -predictor(features)[0]
    logits, _ = model.read(model.image_pass(Batch(random_images(1), None)))
    assert torch.allclose(logits, -2 * plain, atol=1e-6)
