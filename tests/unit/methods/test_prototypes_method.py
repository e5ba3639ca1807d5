"""Prototypes as a method: what is kept, how it moves, and that retraining the classifier brings old classes back."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config

from incdet.align.base import LatentPairs
from incdet.engine.learner import freeze_copy
from incdet.errors import CheckpointError, ConfigError
from incdet.methods.prototypes import FILE, PrototypeReplay
from incdet.replay.prototypes import load_prototypes

WIDTH = 16  # of tiny's region features


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config())


def method(world: World, **changes) -> PrototypeReplay:
    node = world.cfg.METHOD.PROTOTYPES.clone()
    node.update({"BATCH": 64, "PRIOR": 1, "ITERATIONS": 30, **changes})
    return PrototypeReplay(node)


def second(world: World, pairs: LatentPairs | None = None):
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    changes = {} if pairs is None else {"latent_pairs": lambda images, background, limit: pairs}
    return world.context(SECOND, student, freeze_copy(world.first), **changes)


def run(world: World, prototypes: PrototypeReplay, context, first: bool = True) -> None:
    if first:
        prototypes.end_task(world.context(FIRST))
    prototypes.training_data(context.view, context)
    prototypes.refine(context)


def test_the_first_task_keeps_a_gaussian_of_each_class(world):
    prototypes = method(world)
    context = world.context(FIRST)
    prototypes.refine(context)
    prototypes.end_task(context)
    kept = load_prototypes(context.task_folder / FILE, FIRST.seen)
    features = context.features(world.first, context.view.images, "test")
    mine = [f[torch.from_numpy(image.labels) == 1] for f, image in zip(features, context.view.images, strict=True)]
    torch.testing.assert_close(kept.means[1], torch.cat(mine).mean(dim=0))
    assert kept.counts.tolist() == [2, 3]  # the letters a and b in tiny.TEXTS
    assert prototypes.report() == {}


def test_old_prototypes_follow_the_drift_and_new_ones_are_added(world):
    prototypes = method(world, DRIFT="shift")
    old = torch.randn(40, WIDTH)
    labels = torch.tensor([2, 3] * 10 + [-1] * 20)
    context = second(world, LatentPairs(old, old + 3.0, labels))
    run(world, prototypes, context)
    before = load_prototypes(world.folder / "task_1" / FILE, FIRST.seen)
    after = load_prototypes(context.task_folder / FILE, SECOND.seen)
    torch.testing.assert_close(after.means[:2], before.means + 3.0)
    torch.testing.assert_close(after.means[2], old[0:20:2].mean(dim=0) + 3.0)
    assert after.counts.tolist() == [2, 3, 10, 10]
    assert prototypes.report()["prototypes"]["drift"] == "shift"


def test_only_the_classifier_changes_and_twice_gives_the_same(world):
    context = second(world)
    before = copy.deepcopy(context.student.state_dict())
    results = []
    for _ in range(2):  # a second life trains up to here again
        context.student.load_state_dict(before)
        run(world, method(world), context)
        results.append(copy.deepcopy(context.student.state_dict()))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    changed = {name for name, value in results[0].items() if not torch.equal(value, before[name])}
    assert changed == {f"roi_heads.box_predictor.cls_score.{part}" for part in ("weight", "bias")}
    assert all(parameter.grad is None for parameter in context.student.parameters())


def separable(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of four classes and background, each around its own axis, and their labels."""
    labels = torch.arange(5).repeat_interleave(40)
    return 10 * torch.eye(WIDTH)[labels] + 0.1 * torch.randn(len(labels), WIDTH), labels


def test_a_classifier_that_forgot_learns_again(world):
    torch.manual_seed(0)
    features, labels = separable(world)
    prototypes = method(world, BASE_LR=0.1, BACKGROUND_SHARE=0.25)
    seen = LatentPairs(features, features, torch.where(labels < 2, -9, torch.where(labels == 4, -1, labels)))
    context = second(world, seen)
    prototypes.end_task(world.context(FIRST))
    kept = method(world)._fit(world.context(FIRST), LatentPairs(features, features, labels))
    prototypes._keep(world.context(FIRST), kept)
    with torch.no_grad():  # old rows are forgotten, and the teacher calls the fifth kind background
        context.student.classifier.weight.zero_()
        teacher = context.teacher.classifier
        teacher.weight.zero_()
        for label, row in enumerate(context.teacher.classifier_rows):
            teacher.weight[row, label if label < 2 else 4] = 1.0
    prototypes.training_data(context.view, context)
    prototypes.refine(context)
    predicted = context.student.predictor(features)[0].argmax(dim=1)
    assert (predicted == labels).float().mean() > 0.99


def test_background_that_the_old_detector_calls_an_object_is_not_taught(world):
    context = second(world)
    with torch.no_grad():
        for parameter in context.teacher.classifier.parameters():
            parameter.zero_()
        context.teacher.classifier.weight[context.teacher.classifier_rows[0], 0] = 10.0
    features = torch.zeros(4, WIDTH)
    features[0, 0] = features[2, 0] = 1.0  # the old detector sees class a
    features[1, 0] = features[3, 0] = -1.0  # nothing, with two classes left: p(background) = 1/2
    pairs = LatentPairs(features, features, torch.tensor([-1, -1, 2, 0]))
    assert method(world, OLD_SCORE=0.6)._taught_labels(context, pairs).tolist() == [-1, 4, 2, -1]
    assert method(world, OLD_SCORE=0.4)._taught_labels(context, pairs).tolist() == [-1, -1, 2, -1]


def test_each_class_is_drawn_as_often_whatever_it_has(world):
    features = torch.arange(120.0)[:, None].expand(120, WIDTH)
    labels = torch.tensor([2] * 90 + [3] * 2 + [-1] * 28)
    context = second(world)
    prototypes = method(world, BATCH=400, BACKGROUND_SHARE=0.5, ITERATIONS=20, OLD_SCORE=1.0)
    prototypes.end_task(world.context(FIRST))
    old = load_prototypes(world.folder / "task_1" / FILE, FIRST.seen)
    pairs = LatentPairs(features, features, labels)
    counts = torch.zeros(5)
    for drawn, wanted in prototypes._batches(context, old, pairs, torch.Generator().manual_seed(0)):
        counts += wanted.bincount(minlength=5)
        real = wanted >= 2
        sources = labels[drawn[real, 0].long()]
        assert torch.equal(torch.where(sources < 0, 4, sources), wanted[real])
    assert counts[4] == 20 * 200
    assert ((counts[:4] - 1000).abs() < 100).all()


def test_three_tasks_in_a_row(tmp_path):
    world = World(tmp_path, tiny_config(), split="1x4")
    prototypes = method(world, ITERATIONS=2)
    prototypes.end_task(world.context(world.stream[0]))
    previous = world.first
    for task in world.stream.tasks[1:3]:
        student = copy.deepcopy(previous)
        student.expand_classes(1)
        context = world.context(task, student, freeze_copy(previous))
        prototypes.training_data(context.view, context)
        prototypes.refine(context)
        prototypes.end_task(context)
        previous = student
    assert len(load_prototypes(context.task_folder / FILE, world.stream[2].seen)) == 3


def test_a_missing_file_says_how_to_come_by_it(world):
    with pytest.raises(CheckpointError, match=r"prototypes\.safetensors .*cannot be read.*learn that task again"):
        run(world, method(world), second(world), first=False)


@pytest.mark.parametrize(("key", "value"), [("DRIFT", "affine"), ("BACKGROUND_SHARE", 1.0)])
def test_an_unknown_setting_is_refused_before_anything_is_learned(world, key, value):
    with pytest.raises(ConfigError, match=rf"METHOD\.PROTOTYPES\.{key}: expected"):
        method(world, **{key: value})
