"""Passes with gradients over training images, around a task."""

from types import SimpleNamespace

import pytest
import torch
from tiny import FIRST, World, tiny_config

from incdet.engine import inference


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config("fpn", "INPUT.RANDOM_FLIP", "none"))


def looks(world: World, rank: int = 0, processes: int = 1):
    """The regions that one of so many processes samples, by the images' places."""
    fabric = SimpleNamespace(global_rank=rank, world_size=processes, device="cpu")
    images = world.context(FIRST).view.images
    found = inference.passes(world.first, images, FIRST, world.cfg, fabric, "test")
    return {rank + processes * turn: one.regions for turn, one in enumerate(found)}


def test_every_image_comes_once_in_order_with_its_targets(world):
    context = world.context(FIRST)
    images = context.view.images
    found = [one.images.targets for one in context.passes(world.first, images, "test")]
    assert [len(targets) for targets in found] == [1] * len(images)
    assert [targets[0].labels.tolist() for targets in found] == [image.labels.tolist() for image in images]


def test_losses_have_gradients_and_the_detector_is_in_eval_mode_meanwhile(world):
    context, detector = world.context(FIRST), world.first.train()
    statistics = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    for one in context.passes(detector, context.view.images, "test"):
        assert not detector.training
        sum(detector.losses(one.images, one.regions).values()).backward()
    assert detector.training
    assert detector.classifier.weight.grad.any()
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in detector.named_buffers())


def test_a_loop_that_breaks_off_leaves_the_mode_of_before(world):
    context, detector = world.context(FIRST), world.first.train()
    passes = context.passes(detector, context.view.images, "test")
    next(passes)
    passes.close()
    assert detector.training


def test_processes_share_the_images_and_sample_what_one_would(world):
    whole = looks(world)
    torch.rand(3)  # whatever was drawn before
    shared = looks(world, 0, 2) | looks(world, 1, 2)
    assert sorted(shared) == sorted(whole) == [*range(len(world.context(FIRST).view.images))]
    assert all(torch.equal(shared[place].boxes, regions.boxes) for place, regions in whole.items())
    assert all(torch.equal(shared[place].logits, regions.logits) for place, regions in whole.items())
