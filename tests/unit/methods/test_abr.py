"""Which crops are kept, how they come back in a batch, and what is distilled."""

import itertools
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from tiny import FIRST, SECOND, World, random_batch, tiny_config

from incdet.data.images import read_image
from incdet.errors import ConfigError
from incdet.methods import build_methods
from incdet.methods.abr import Abr
from incdet.replay.boxes import cut, load_boxes
from incdet.structures import Batch, Target

TEXTS = ("a", "ab", "b", "bc", "ca", "dcb", "d", "a", "ad", "c")  # five objects of a, four of b, c and d


def method(world: World, **changes) -> Abr:
    node = world.cfg.METHOD.ABR.clone()
    node.update({"MIN_SIZE": 12, **changes})
    return Abr(node)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config(), TEXTS)


@pytest.fixture
def single_steps(tmp_path):
    """Four tasks of one class."""
    return World(tmp_path, tiny_config(), TEXTS, split="1x4")


def folder(world: World):
    return world.folder / "memory" / "boxes"


def content(world: World) -> dict[str, bytes]:
    """The crops by name."""
    return {box.file: (folder(world) / box.file).read_bytes() for box in load_boxes(folder(world))}


# ---------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("rule", ["mean", "random", "herding"])
def test_each_new_class_gets_its_share_of_the_budget_rounded_up(world, rule):
    abr = method(world, BUDGET=5, SELECTION=rule)
    abr.end_task(world.context(FIRST))
    assert Counter(box.label for box in load_boxes(folder(world))) == {0: 3, 1: 3}
    assert abr.report() == {"stored_boxes": {"a": 3, "b": 3}}


def test_a_class_with_too_few_objects_gives_all_it_has(world):
    abr = method(world)
    abr.end_task(world.context(FIRST))
    assert abr.report() == {"stored_boxes": {"a": 5, "b": 4}}


def test_small_objects_are_not_kept(world):
    abr = method(world, MIN_SIZE=24)  # all objects are 24 pixels wide
    abr.end_task(world.context(FIRST))
    assert abr.report() == {"stored_boxes": {"a": 0, "b": 0}}
    abr.begin_task(world.context(SECOND))
    batch = random_batch(4)
    assert abr.transform_batch(batch) is batch


def test_the_budget_shrinks_from_the_worst(single_steps):
    abr, history = method(single_steps, BUDGET=4), []
    for task in single_steps.stream:
        abr.end_task(single_steps.context(task))
        history.append(content(single_steps))
    assert [sorted(Counter(int(name[:4]) for name in crops).items()) for crops in history] == [
        [(0, 4)],
        [(0, 2), (1, 2)],
        [(0, 2), (1, 2), (2, 2)],
        [(0, 1), (1, 1), (2, 1), (3, 1)],
    ]
    for earlier, later in itertools.pairwise(history):
        assert {name: crop for name, crop in later.items() if name in earlier}.items() <= earlier.items()


def test_the_nearest_to_the_class_mean_come_first(world):
    """Class a's features point to 0, 90, 40, 50 and 60 degrees, in the mean to 48; their length does not count."""
    context, angles, lengths = world.context(FIRST), iter([0, 90, 40, 50, 60]), iter([9.0, 1.0, 2.0, 7.0, 0.5])

    def feature(label: int) -> torch.Tensor:
        angle = torch.tensor(next(angles) if label == 0 else 0.0).deg2rad()
        return (next(lengths) if label == 0 else 1.0) * torch.stack([angle.cos(), angle.sin()])

    def features(detector, images, description):
        return [torch.stack([feature(label) for label in image.labels.tolist()]) for image in images]

    method(world, BUDGET=6).end_task(replace(context, features=features))
    of_a = [image for image in context.view.images if 0 in image.labels]
    for rank, position in enumerate([3, 2, 4]):
        image = of_a[position]
        stored = read_image(folder(world) / f"0000_0000{rank}.png")
        assert torch.equal(stored, cut(image, image.labels.tolist().index(0)))


def test_ending_a_task_again_changes_nothing(world):
    abr = method(world, BUDGET=5)
    for task in (FIRST, SECOND):
        abr.end_task(world.context(task))
        once = content(world)
        abr.end_task(world.context(task))
        assert content(world) == once
    assert len(once) == 8


def test_a_random_choice_follows_the_seed(world):
    choices = []
    for seed in (0, 0, 1, 2, 3):
        world.cfg.SEED = seed
        method(world, BUDGET=4, SELECTION="random").end_task(world.context(FIRST))
        choices.append(tuple(content(world).values()))
    assert choices[0] == choices[1]
    assert len(set(choices)) > 1


# ---------------------------------------------------------------------- how it comes back


def begun(world: World, **changes) -> Abr:
    """At the start of the second task, after the first one."""
    abr = method(world, **changes)
    abr.end_task(world.context(FIRST))
    again = method(world, **changes)
    again.begin_task(world.context(SECOND))
    return again


def blank(count: int, size: tuple[int, int] = (64, 96)) -> Batch:
    """Black images, each with one new object."""
    targets = [Target.from_boxes(torch.tensor([[80.0, 50, 90, 60]]), torch.tensor([3])) for _ in range(count)]
    return Batch([torch.zeros(3, *size) for _ in range(count)], targets, [f"im{i}" for i in range(count)])


def test_the_first_task_replays_nothing(world):
    abr = method(world)
    abr.end_task(world.context(FIRST))
    abr.begin_task(world.context(FIRST))
    batch = blank(4)
    assert abr.transform_batch(batch) is batch


def test_half_of_the_images_stay_a_quarter_is_mixed_and_a_quarter_is_a_mosaic(world):
    torch.manual_seed(0)
    batch = blank(400)
    mixed = begun(world).transform_batch(batch)
    assert mixed.image_ids == batch.image_ids
    kinds = Counter()
    for before, image, target in zip(batch.images, mixed.images, mixed.targets, strict=True):
        if image is before:
            kinds["untouched"] += 1
            assert target.labels.tolist() == [3]
        elif 3 in target.labels:
            kinds["mixup"] += 1
            assert image.shape == (3, 64, 96)
            assert len(target) > 1
            assert set(target.labels[1:].tolist()) <= {0, 1}
        else:
            kinds["mosaic"] += 1
            assert image.shape == (3, 80, 80)
            assert len(target) == 4
            assert set(target.labels.tolist()) <= {0, 1}
        assert target.use_rpn.all()
        assert target.use_roi.all()
        assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
    assert 170 < kinds["untouched"] < 230
    assert 75 < kinds["mixup"] < 125
    assert 75 < kinds["mosaic"] < 125


def test_the_loaders_images_are_left_as_they_are(world):
    batch = blank(40)
    begun(world, MIXUP=1.0, MOSAIC=0.0).transform_batch(batch)
    assert all(not image.any() for image in batch.images)
    assert all(len(target) == 1 for target in batch.targets)


def test_every_class_is_drawn_as_often_however_many_crops_it_has(world):
    torch.manual_seed(0)
    abr = begun(world, MIXUP=0.0, MOSAIC=1.0)
    abr._crops[0] = abr._crops[0][:1]
    labels = torch.cat([target.labels for target in abr.transform_batch(blank(200)).targets])
    assert 0.45 < labels.float().mean() < 0.55


@pytest.mark.parametrize(("flip", "expected"), [("horizontal", {True, False}), ("none", {False})])
def test_crops_are_flipped_where_images_are(world, flip, expected):
    world.cfg.INPUT.RANDOM_FLIP = flip
    abr = begun(world)
    crops = [(label, crop.float() / 255) for label, row in zip(abr._labels, abr._crops, strict=True) for crop in row]
    flipped = set()
    for _ in range(20):
        drawn, label = abr._draw(torch.zeros(3, 64, 96))
        (how,) = {
            turned
            for own, crop in crops
            for turned in (True, False)
            if own == label and torch.equal(drawn, crop.flip(2) if turned else crop)
        }
        flipped.add(how)
    assert flipped == expected


def test_images_of_many_sizes_and_batches_of_other_kinds(world):
    @dataclass(frozen=True)
    class Resized(Batch):
        """As a backend may have its own."""

    sizes = [(64, 96), (200, 96), (90, 300)]
    images = [blank(1, size).images[0] for size in sizes]
    batch = Resized(images, blank(3).targets, ["x", "y", "z"])
    abr = begun(world, MIXUP=0.0, MOSAIC=1.0)
    mixed = abr.transform_batch(batch)
    assert type(mixed) is Resized
    assert [image.shape[-2:] for image in mixed.images] == [(80, 80), (148, 148), (195, 195)]
    for target, (height, width) in zip(mixed.targets, sizes, strict=True):
        sides = (target.boxes[:, 2:] - target.boxes[:, :2]).amax(dim=0)
        assert (sides <= 0.7 * (height + width) / 2 + 1).all()


def test_prediction_batches_are_left_alone(world):
    batch = Batch(blank(2).images, None)
    assert begun(world).transform_batch(batch) is batch


# ---------------------------------------------------------------------- losses


def second_task(world: World, *changes):
    world.cfg.merge_from_list(["METHODS", ("abr",), "METHOD.ABR.MIN_SIZE", 12, *changes])
    learner, view = world.begin_second(build_methods(world.cfg))
    return learner, world.batch(view)


@pytest.mark.parametrize("boxes", ["teacher", "student"])
def test_a_student_that_is_its_teacher_has_nothing_to_attend_to(world, boxes):
    learner, batch = second_task(world, "METHOD.ABR.BOXES", boxes)
    learner.student.eval()  # batch norm as the teacher's
    losses = learner(batch)
    assert losses["loss_distill_attention"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_distill_rpn"].item() == 0
    torch.nn.init.normal_(learner.student.backbone.fpn.layer_blocks[0][0].weight)
    assert learner(batch)["loss_distill_attention"].item() > 1e-3


def test_beta_scales_the_attentive_term_alone(world):
    learner, batch = second_task(world)
    torch.nn.init.normal_(learner.student.backbone.fpn.layer_blocks[0][0].weight)
    results = []
    for beta in (1.0, 2.0):
        learner.methods[0].cfg.WEIGHT_ATTENTION = beta
        torch.manual_seed(0)
        learner.student.eval()
        results.append(learner(batch))
    ratios = {name: (value / results[0][name]).item() for name, value in results[1].items() if results[0][name] > 0}
    assert ratios.pop("loss_distill_attention") == pytest.approx(2)
    assert list(ratios.values()) == pytest.approx([1] * len(ratios))


def test_gradients_of_the_attentive_term_do_not_reach_the_head(world):
    learner, batch = second_task(world)
    learner(batch)["loss_distill_attention"].backward()
    assert all(p.grad is None for p in learner.student.roi_heads.parameters())
    assert any(p.grad is not None and p.grad.any() for p in learner.student.backbone.parameters())


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BUDGET": 0}, r"METHOD\.ABR\.BUDGET: expected at least 1 crop, got 0\. .*METHODS \[mma\]"),
        ({"SELECTION": "best"}, r"METHOD\.ABR\.SELECTION: expected one of mean, random, herding, got 'best'"),
        ({"MIXUP": 0.7, "MOSAIC": 0.4}, r"MIXUP and MOSAIC are shares .*, got 0\.7 and 0\.4"),
        ({"MIXUP": -0.1}, r"MIXUP and MOSAIC are shares"),
        ({"BOXES": "both"}, r"METHOD\.ABR\.BOXES"),
        ({"WEIGHT": "much"}, r"METHOD\.ABR\.WEIGHT"),
    ],
)
def test_values_that_make_no_sense_are_refused(world, changes, message):
    with pytest.raises(ConfigError, match=message):
        method(world, **changes)
