"""A multi-label classifier answers for every class by itself, and is taught only what its images' labels say."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import World, random_images, tiny_config, tiny_detector
from torch.nn import functional as F

from incdet.errors import ConfigError, MethodError
from incdet.methods import build_methods, method_names
from incdet.structures import Batch, Target

CHOICES = {
    "linear": (),
    "cosine": ("MODEL.CLASSIFIER.HEAD", "cosine"),
    "mlp": ("MODEL.BACKBONE.NAME", "mlp"),
}
SHORT = {"lwf": ("METHOD.LWF.WARMUP_ITER", 1)}  # stages that methods train in


def config(*overrides):
    keys = ("TASK", "classification", "MODEL.CLASSIFIER.MULTI_LABEL", True, "TASKS.SPLIT", "2+2")
    return tiny_config("fpn", *keys, "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, *overrides)


@pytest.fixture(params=CHOICES.values(), ids=CHOICES.keys())
def model(request):
    return tiny_detector(config(*request.param), 4).train()


def image(labels, labelled=None, uncertain=()) -> Target:
    """An image with objects of some classes, of which some are in no stage's use."""
    names = torch.tensor([*labels, *uncertain], dtype=torch.int64)
    target = Target.from_boxes(torch.tensor([[0.0, 0, 96, 64]]).repeat(len(names), 1), names)
    target.use_roi[len(labels) :] = False
    return replace(target, labelled=None if labelled is None else frozenset(labelled))


def regions_of(model, *targets):
    images = model.image_pass(Batch(random_images(len(targets)), list(targets)))
    return images, model.region_pass(images)


@pytest.mark.parametrize(
    ("target", "known"),
    [
        (image([0, 2, 2]), [1, 0, 1, 0]),
        (image([]), [0, 0, 0, 0]),
        (image([3], labelled=(2, 3)), [-1, -1, 0, 1]),
        (image([3], labelled=(2, 3), uncertain=[2]), [-1, -1, -1, 1]),
        (image([2], labelled=(2, 3), uncertain=[2]), [-1, -1, 1, 0]),  # one of two is certain
        (image([0, 3], labelled=(2, 3)), [1, -1, 0, 1]),  # seen by a teacher
    ],
)
def test_what_is_known_of_each_class(model, target, known):
    assert model.multi_label
    _, regions = regions_of(model.eval(), target)
    assert regions.label_sets.tolist() == [known]
    assert regions.labels is None


def test_the_loss_is_of_the_known_columns_only(model):
    images, regions = regions_of(model, image([3], labelled=(2, 3)), image([2, 3], labelled=(2, 3)))
    losses = model.losses(images, regions)
    expected = F.binary_cross_entropy_with_logits(regions.logits[:, 2:], torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert losses.keys() == {"loss_cls"}
    assert torch.allclose(losses["loss_cls"], expected)
    assert model.losses(images, regions, skip=("loss_cls",)) == {}
    losses["loss_cls"].backward()
    assert not model.head.weight.grad[:2].any()
    assert model.head.weight.grad[2:].any()


def test_scores_are_every_class_by_itself(model):
    model.eval()
    images = random_images(2)
    logits = model.region_pass(model.image_pass(Batch(images, None))).logits
    for row, found in zip(logits, model.predict(images), strict=True):
        assert sorted(found.labels.tolist()) == [0, 1, 2, 3]
        assert (found.scores.diff() <= 0).all()
        assert torch.allclose(found.scores, row.sigmoid()[found.labels])


@pytest.mark.parametrize("name", method_names("multi_label"))
def test_methods_for_it_take_a_step(tmp_path, name):
    world = World(tmp_path, config("SOLVER.MAX_ITER", 1, *SHORT.get(name, ()), "METHODS", (name,)))
    learner, view = world.begin_second(build_methods(world.cfg))
    losses = learner(world.batch(view))
    assert "loss_cls" in losses
    sum(losses.values()).backward()
    assert learner.student.head.weight.grad[2:].any()


@pytest.mark.parametrize("name", sorted(set(method_names()) - set(method_names("multi_label"))))
def test_other_methods_are_refused(name):
    with pytest.raises(MethodError, match=rf"{name} works on .*not on multi_label \(MODEL\.CLASSIFIER\.MULTI_LABEL\)"):
        build_methods(config("METHODS", (name,)))


def test_heads_have_nothing_to_keep_apart():
    with pytest.raises(ConfigError, match="no classes compete"):
        tiny_detector(config("MODEL.CLASSIFIER.MULTI_HEAD", True))


def test_a_new_class_takes_nothing_from_the_others(model):
    model.eval()
    images = random_images(2)
    before = copy.deepcopy(model).predict(images)
    model.expand_classes(2)
    for old, now in zip(before, model.predict(images), strict=True):
        kept = now.labels < 4
        assert torch.equal(now.labels[kept], old.labels)
        assert torch.allclose(now.scores[kept], old.scores, atol=1e-6)
