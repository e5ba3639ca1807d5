"""A batch is a function of the seed and the iteration, whoever loads it and wherever the run began."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny import SECOND, STREAM, photographs, tiny_config

from incdet.data.loader import BatchPlan, ImageSet, train_loader
from incdet.data.views import TaskView, task_view
from incdet.errors import DataError

AUGMENTED = ("INPUT.ZOOM_OUT", 1.5, "INPUT.COLOR_JITTER", 0.2)


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> TaskView:
    return task_view(photographs(tmp_path_factory.mktemp("images"), *["c", "bd", "cd", "dac", "d"]), STREAM, SECOND)


def with_memory(view: TaskView, fresh: int, stored: int, share: float | None) -> TaskView:
    images = [view.images[0]] * fresh + [replace(view.images[1], source="memory")] * stored
    return replace(view, images=tuple(images), memory_share=share)


def batches(view, iterations: range, *overrides, rank: int = 0, world_size: int = 1):
    cfg = tiny_config("fpn", *AUGMENTED, *overrides)
    return list(train_loader(view, cfg, iterations, rank, world_size))


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.image_ids == other.image_ids
        assert all(map(torch.equal, one.images, other.images))
        for target, other_target in zip(one.targets, other.targets, strict=True):
            assert torch.equal(target.boxes, other_target.boxes)
            assert torch.equal(target.labels, other_target.labels)


def test_workers_change_nothing(view):
    alone = batches(view, range(4))
    assert_same(batches(view, range(4), "DATALOADER.NUM_WORKERS", 2), alone)


def test_loading_a_batch_leaves_the_random_state_alone(view):
    loader = iter(train_loader(view, tiny_config("fpn", *AUGMENTED), range(2)))
    before = torch.get_rng_state()
    next(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_in_between_changes_nothing(view):
    torch.manual_seed(0)
    first = batches(view, range(2))
    torch.manual_seed(1)
    assert_same(batches(view, range(2)), first)


def test_a_resumed_range_is_the_tail_of_the_whole(view):
    assert_same(batches(view, range(3, 6)), batches(view, range(6))[3:])


def test_two_processes_together_load_the_batch_of_one(view):
    whole = batches(view, range(3))
    halves = [batches(view, range(3), rank=rank, world_size=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert [len(part) for part in parts] == [2, 2]
        rejoined = {i: (part, j) for k, part in enumerate(parts) for j, i in enumerate(range(k, 4, 2))}
        for i in range(4):
            part, j = rejoined[i]
            assert part.image_ids[j] == batch.image_ids[i]
            assert torch.equal(part.images[j], batch.images[i])


def test_seed_task_and_iteration_change_the_batch(view):
    plans = [BatchPlan(view, 4, seed=0), BatchPlan(view, 4, seed=1), BatchPlan(replace(view, task=STREAM[0]), 4, 0)]
    drawn = [tuple(plan.batch(iteration)) for plan in plans for iteration in range(20)]
    assert len(set(drawn)) == 60
    assert plans[0].batch(7) == BatchPlan(view, 4, seed=0).batch(7)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_every_image_comes_once_per_epoch(view, batch_size):
    plan = BatchPlan(view, batch_size, seed=0)
    drawn = [index for iteration in range(5 * batch_size) for index, _ in plan.batch(iteration)]
    epochs = [drawn[start : start + 5] for start in range(0, len(drawn), 5)]
    assert len(epochs) == batch_size**2
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    if len(epochs) > 3:
        assert len(set(map(tuple, epochs))) > 1


def test_an_image_is_augmented_anew_each_time(view):
    plan = BatchPlan(view, 4, seed=0)
    seeds = [seed for iteration in range(50) for _, seed in plan.batch(iteration)]
    assert len(set(seeds)) == 200


@pytest.mark.parametrize(
    ("share", "batch_size", "from_memory"),
    [(0.25, 4, 1), (0.25, 16, 4), (0.5, 8, 4), (0.01, 8, 1), (0.99, 8, 7), (0.3, 8, 2)],
)
def test_the_memory_has_its_share_of_every_batch(view, share, batch_size, from_memory):
    mixed = with_memory(view, fresh=30, stored=3, share=share)
    plan = BatchPlan(mixed, batch_size, seed=0)
    for iteration in range(20):
        sources = Counter(mixed.images[index].source for index, _ in plan.batch(iteration))
        assert sources == {"memory": from_memory, "task": batch_size - from_memory}


def test_each_pool_has_its_own_epochs(view):
    mixed = with_memory(view, fresh=6, stored=4, share=0.25)
    drawn = [index for iteration in range(8) for index, _ in BatchPlan(mixed, 4, 0).batch(iteration)]
    counts = Counter(drawn)
    assert [counts[index] for index in range(6)] == [4] * 6  # 24 places
    assert [counts[index] for index in range(6, 10)] == [2] * 4  # 8 places


def test_without_a_share_memory_images_fall_in_like_any_other(view):
    mixed = with_memory(view, fresh=6, stored=2, share=None)
    drawn = [index for iteration in range(2) for index, _ in BatchPlan(mixed, 4, 0).batch(iteration)]
    assert sorted(drawn) == list(range(8))


def test_targets_are_what_the_task_may_see(view):
    (batch,) = batches(view, range(1), "SOLVER.IMS_PER_BATCH", 5, "INPUT.ZOOM_OUT", 1.0, "INPUT.RANDOM_FLIP", "none")
    found = {name: target for name, target in zip(batch.image_ids, batch.targets, strict=True)}
    assert sorted(found) == [f"im{i}" for i in range(5)]
    assert {name: target.labels.tolist() for name, target in found.items()} == {
        "im0": [2],
        "im1": [3],
        "im2": [2, 3],
        "im3": [3, 2],
        "im4": [3],
    }
    assert found["im1"].boxes.tolist() == [[34, 12, 58, 36]]
    assert all(target.labelled == {2, 3} for target in found.values())
    assert all(image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1 for image in batch.images)


def test_a_batch_that_processes_cannot_share_is_refused(view):
    with pytest.raises(DataError, match=r"SOLVER\.IMS_PER_BATCH is 4, which 3 processes.*multiple"):
        batches(view, range(1), world_size=3)


def test_a_view_without_images_is_refused(view):
    with pytest.raises(DataError, match="task 2 has no training image"):
        batches(replace(view, images=()), range(1))


def test_prediction_reads_images_alone(view):
    position, pixels = ImageSet([image.record.path for image in view.images])[2]
    assert position == 2
    assert pixels.shape == (3, 64, 96)
    assert pixels.dtype == torch.float32
    assert 0.9 < pixels.max() <= 1


# ---------------------------------------------------------------------- images of one shape


def shaped(view: TaskView, wide: int, tall: int, source: str = "task") -> tuple:
    record = view.images[0].record
    turned = replace(record, width=record.height, height=record.width)
    image = replace(view.images[0], source=source)
    return (image,) * wide + (replace(image, record=turned),) * tall


def tall_ones(view: TaskView, batch) -> list[bool]:
    records = [view.images[index].record for index, _ in batch]
    return [record.height > record.width for record in records]


def test_grouped_batches_hold_one_shape_each_as_often_as_there_are_such(view):
    grouped = replace(view, images=shaped(view, 9, 3))
    plan = BatchPlan(grouped, 4, seed=0, group=True)
    batches_seen = [tall_ones(grouped, plan.batch(iteration)) for iteration in range(40)]
    assert all(len(set(batch)) == 1 for batch in batches_seen)
    assert [sum(batch[0] for batch in batches_seen[start : start + 4]) for start in range(0, 40, 4)] == [1] * 10


def test_grouped_images_are_drawn_once_per_epoch_of_their_shape(view):
    grouped = replace(view, images=shaped(view, 8, 4))
    plan = BatchPlan(grouped, 4, seed=0, group=True)
    drawn = Counter(index for iteration in range(3 * 5) for index, _ in plan.batch(iteration))
    assert drawn == dict.fromkeys(range(12), 5)


def test_without_a_tall_image_grouping_changes_nothing(view):
    one_shape = replace(view, images=shaped(view, 5, 0))
    plans = [BatchPlan(one_shape, 4, seed=3, group=group) for group in (True, False)]
    for iteration in range(10):
        assert plans[0].batch(iteration) == plans[1].batch(iteration)


def test_the_memory_follows_the_shape_of_the_batch_where_it_can(view):
    memory = shaped(view, 2, 2, source="memory")
    mixed = replace(view, images=shaped(view, 6, 6) + memory, memory_share=0.25)
    plan = BatchPlan(mixed, 4, seed=0, group=True)
    for iteration in range(12):
        assert len(set(tall_ones(mixed, plan.batch(iteration)))) == 1
    no_tall = replace(view, images=shaped(view, 6, 6) + shaped(view, 3, 0, source="memory"), memory_share=0.25)
    plan = BatchPlan(no_tall, 4, seed=0, group=True)
    sources = [[no_tall.images[index].source for index, _ in plan.batch(iteration)] for iteration in range(12)]
    assert all(batch.count("memory") == 1 for batch in sources)
