"""What is kept for later tasks, and how it comes back."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config

from incdet.errors import ConfigError
from incdet.methods.replay import Replay
from incdet.replay.memory import load_memory, memory_size

TEXTS = ("a", "ab", "b", "bc", "ca", "dcb", "d", "a", "ad", "c")


def method(world: World, **changes) -> Replay:
    node = world.cfg.METHOD.REPLAY.clone()
    node.update(changes)
    return Replay(node)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config(), TEXTS)


@pytest.fixture
def single_steps(tmp_path):
    """Four tasks of one class."""
    return World(tmp_path, tiny_config(), TEXTS, split="1x4")


def memory(world: World):
    return load_memory(world.folder / "memory", {record.image_id: record for record in world.dataset.images})


def kept(world: World) -> dict[int, list[str]]:
    """Image ids by class, in order of rank."""
    stored = sorted(memory(world), key=lambda e: e.rank)
    return {label: [e.image.record.image_id for e in stored if e.kept_for == label] for label in range(4)}


@pytest.mark.parametrize("rule", ["random", "class_balanced", "herding"])
def test_each_new_class_gets_its_number_of_images_that_show_it(world, rule):
    method(world, IMAGES_PER_CLASS=2, SELECTION=rule).end_task(world.context(FIRST))
    counts = Counter(e.kept_for for e in memory(world))
    assert counts == {0: 2, 1: 2}
    for exemplar in memory(world):
        assert exemplar.kept_for in exemplar.image.labels
        assert exemplar.image.labelled == {0, 1}
        assert set(exemplar.image.labels.tolist()) <= {0, 1}


def test_a_class_with_too_few_images_gives_all_it_has(world):
    method(world, IMAGES_PER_CLASS=50).end_task(world.context(FIRST))
    assert sorted(kept(world)[0]) == ["im0", "im1", "im4", "im7", "im8"]


def test_ending_a_task_again_changes_nothing(world):
    """A task that was killed between its training and its test ends twice."""
    replay = method(world, IMAGES_PER_CLASS=2)
    replay.end_task(world.context(FIRST))
    once = kept(world)
    replay.end_task(world.context(FIRST))
    assert kept(world) == once
    replay.end_task(world.context(SECOND))
    twice = kept(world)
    replay.end_task(world.context(SECOND))
    assert kept(world) == twice
    assert twice[0] == once[0]


def test_the_choice_follows_the_seed(world):
    choices = []
    for seed in (0, 0, 1, 2, 3):
        world.cfg.SEED = seed
        method(world, IMAGES_PER_CLASS=3).end_task(world.context(FIRST))
        choices.append(str(kept(world)))
    assert choices[0] == choices[1]
    assert len(set(choices)) > 1


def test_a_budget_is_shared_by_the_seen_classes_and_shrinks_from_the_worst(single_steps):
    replay = method(single_steps, BUDGET=4)
    history = []
    for task in single_steps.stream:
        replay.end_task(single_steps.context(task))
        history.append(kept(single_steps))
    assert [[len(by_class[label]) for label in range(4)] for by_class in history] == [
        [4, 0, 0, 0],
        [2, 2, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    for label in range(4):
        chosen = [by_class[label] for by_class in history if by_class[label]]
        assert all(later == chosen[0][: len(later)] for later in chosen)


def test_a_budget_below_the_number_of_classes_still_keeps_one_of_each(single_steps):
    replay = method(single_steps, BUDGET=1)
    for task in single_steps.stream:
        replay.end_task(single_steps.context(task))
    assert all(len(ids) == 1 for ids in kept(single_steps).values())


def test_memory_images_remember_what_was_labelled_at_their_time(single_steps):
    replay = method(single_steps, IMAGES_PER_CLASS=2)
    for task in single_steps.stream.tasks[:3]:
        replay.end_task(single_steps.context(task))
    assert {e.kept_for: set(e.image.labelled) for e in memory(single_steps)} == {0: {0}, 1: {1}, 2: {2}}


def test_stored_images_join_the_new_ones_with_their_share_of_the_batch(world):
    replay = method(world, IMAGES_PER_CLASS=2, SHARE=0.5)
    replay.end_task(world.context(FIRST))
    context = world.context(SECOND)
    view = replay.training_data(context.view, context)
    assert view.images[: len(context.view)] == context.view.images
    stored = view.images[len(context.view) :]
    assert {image.record.image_id for image in stored} == {e.image.record.image_id for e in memory(world)}
    assert len({image.record.image_id for image in stored}) == len(stored)
    assert all(image.source == "memory" for image in stored)
    assert all(image.record.path.is_relative_to(world.folder / "memory") for image in stored)
    assert view.memory_share == 0.5


def test_an_image_kept_by_two_tasks_comes_back_with_the_labels_of_both(single_steps):
    replay = method(single_steps, IMAGES_PER_CLASS=50)
    for task in single_steps.stream.tasks[:2]:
        replay.end_task(single_steps.context(task))
    context = single_steps.context(single_steps.stream[2])
    view = replay.training_data(context.view, context)
    stored = {image.record.image_id: image for image in view.images if image.source == "memory"}
    both = stored["im1"]  # shows a and b
    assert both.labelled == {0, 1}
    assert both.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(both.boxes, single_steps.dataset.images[1].boxes)
    assert all(len(getattr(both, name)) == 2 for name in ("weights", "use_rpn", "use_roi"))
    assert stored["im0"].labelled == {0}
    assert stored["im3"].labels.tolist() == [1]


def test_the_first_task_has_no_memory_and_no_share(world):
    context = world.context(FIRST)
    view = method(world).training_data(context.view, context)
    assert view.images == context.view.images
    assert view.memory_share is None


def test_only_one_process_writes(world):
    method(world).end_task(world.context(FIRST, is_main=False))
    assert memory_size(world.folder / "memory") == {"images": 0, "crops": 0, "bytes": 0}


def test_herding_asks_the_student_for_features_of_the_task_and_keeps_the_most_typical(world):
    asked = []

    def features(detector, images, description):
        asked.append(detector)
        # im1 is the most typical image of class a: its feature is the direction of the mean.
        angle = {"im0": 0.0, "im1": 0.5, "im4": 1.0, "im7": 0.2, "im8": 0.8}
        rows = [angle.get(image.record.image_id, 3.0) for image in images]
        return [
            torch.tensor([[np.cos(x), np.sin(x)]]).repeat(len(i.labels), 1) for x, i in zip(rows, images, strict=True)
        ]

    context = world.context(FIRST, features=features)
    method(world, IMAGES_PER_CLASS=1, SELECTION="herding").end_task(context)
    assert asked == [context.student]
    assert kept(world)[0] == ["im1"]


def test_an_unknown_rule_names_the_key(world):
    with pytest.raises(ConfigError, match=r"METHOD\.REPLAY\.SELECTION: expected one of random.*'best'"):
        method(world, SELECTION="best")
