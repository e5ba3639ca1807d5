"""Pairs of latents: the same regions through two detectors."""

import copy

import pytest
import torch
from tiny import World, tiny_config

from incdet.engine.latents import collect_pairs


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config())


def pairs(world: World, previous, current, background=3, limit=1000, seed=0):
    images = world.context().view.images
    return images, collect_pairs(previous, current, images, world.cfg, world.fabric, background, limit, seed)


def test_one_detector_twice_gives_equal_latents_of_objects_and_background(world):
    images, found = pairs(world, world.first, copy.deepcopy(world.first))
    objects = sum(len(image.boxes) for image in images)
    assert torch.equal(found.old, found.new)
    assert (found.labels >= 0).sum() == objects
    assert (found.labels < 0).sum() == 3 * len(images)
    assert sorted(found.labels[found.labels >= 0].tolist()) == sorted(x for i in images for x in i.labels.tolist())


def test_each_detector_computes_everything_from_the_pixels(world):
    """A change in the backbone alone shows in the new latents, not in the old ones."""
    current = copy.deepcopy(world.first)
    torch.nn.init.normal_(current.backbone.body["layer3"][0].conv1.weight)
    _, same = pairs(world, world.first, copy.deepcopy(world.first), background=0)
    _, found = pairs(world, world.first, current, background=0)
    torch.testing.assert_close(found.old, same.old)
    assert not torch.allclose(found.new, same.new)


def test_the_seed_decides_what_is_drawn_and_the_limit_how_much(world):
    _, found = pairs(world, world.first, world.first)
    _, again = pairs(world, world.first, world.first)
    _, other = pairs(world, world.first, world.first, seed=1)
    _, few = pairs(world, world.first, world.first, limit=5)
    assert torch.equal(found.new, again.new)
    assert not torch.equal(found.new, other.new)
    assert len(few.old) == len(few.new) == len(few.labels) == 5


def test_the_modes_are_left_as_they_were(world):
    previous, current = copy.deepcopy(world.first).eval(), copy.deepcopy(world.first).train()
    pairs(world, previous, current)
    assert not previous.training
    assert current.training
