"""Distillation and retrospection: who teaches which head, on which images."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import FIRST, World, random_batch, tiny_config
from torch.nn import functional as F

from incdet.engine.learner import Learner, freeze_copy
from incdet.methods.distill_retrospect import DistillRetrospect, was_stored
from incdet.structures import Batch, Target

CLASSIFICATION = ("TASK", "classification", "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32)
TEXTS = ("a", "b", "a", "c", "d", "c")


@pytest.fixture(params=[(), CLASSIFICATION], ids=["detector", "classifier"])
def world(request, tmp_path):
    return World(tmp_path, tiny_config("fpn", *request.param), TEXTS)


def method(world: World, **changes) -> DistillRetrospect:
    node = world.cfg.METHOD.DISTILL_RETROSPECT.clone()
    node.update({"EXPERT_ITERATIONS": 1, "IMAGES_PER_CLASS": 1, "SHARE": 0.5, **changes})
    return DistillRetrospect(node)


def begin(world: World, one: DistillRetrospect) -> tuple[Learner, Batch]:
    """A student that is no longer its teacher, and a batch of two new images and two stored ones."""
    learner, view = world.begin_second([one])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return learner, world.batch(view)


def looks(learner: Learner, batch: Batch):
    """The losses, the step that they were computed of, and which of its regions are of stored images."""
    seen = []
    one = learner.methods[0]
    losses_of = one.losses
    one.losses = lambda step: seen.append(step) or losses_of(step)
    torch.manual_seed(0)
    losses = learner(batch)
    one.losses = losses_of
    stored_images = torch.tensor([max(target.labelled) < 2 for target in batch.targets])
    return losses, seen[0], stored_images[seen[0].student.regions.image_index]


def soft(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(dim=1))


def test_the_expert_teaches_the_new_head_and_the_old_detector_the_old_one(world):
    one = method(world, TAU_EXPERT=1.0, TAU_OLD=3.0, WEIGHT_RETROSPECTION=2.0)
    learner, batch = begin(world, one)
    losses, step, stored = looks(learner, batch)
    assert sorted(max(target.labelled) for target in batch.targets) == [1, 1, 3, 3]
    student, old = step.student.regions.logits, step.teacher.regions.logits
    expert = step.look(one._expert).regions.logits
    old_columns = torch.cat([student[:, :2], student[:, 4:]], dim=1)  # with the background, where there is one
    torch.testing.assert_close(losses["loss_cls"], soft(student[~stored, 2:], expert[~stored], 1.0))
    torch.testing.assert_close(losses["loss_preservation"], soft(old_columns[~stored], old[~stored], 3.0))
    torch.testing.assert_close(losses["loss_retrospection"], 2 * soft(old_columns[stored], old[stored], 3.0))


def test_a_classifier_is_not_asked_for_its_labels(tmp_path):
    world = World(tmp_path, tiny_config("fpn", *CLASSIFICATION), TEXTS)
    learner, batch = begin(world, method(world))
    swapped = [replace(target, labels=target.labels ^ 1) for target in batch.targets]
    losses, *_ = looks(learner, batch)
    others, *_ = looks(learner, replace(batch, targets=swapped))
    assert losses.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in losses.items())


@pytest.mark.parametrize("multi_head", [True, False])
def test_old_heads_answer_each_by_itself_and_one_head_for_all_its_classes(tmp_path, multi_head):
    keys = (*CLASSIFICATION, "TASKS.SPLIT", "1+1+2", "MODEL.CLASSIFIER.MULTI_HEAD", multi_head)
    world = World(tmp_path, tiny_config("fpn", *keys), TEXTS, "1+1+2")
    one, third = method(world), world.stream[2]
    teacher = copy.deepcopy(world.first)
    teacher.expand_classes(1)
    student = copy.deepcopy(teacher)
    student.expand_classes(2)
    one.begin_task(world.context(third, student, freeze_copy(teacher)))
    learner = Learner(student.train(), freeze_copy(teacher), [one], third)
    losses, step, _ = looks(learner, world.batch(world.context(third).view))
    logits, old = step.student.regions.logits, step.teacher.regions.logits
    # A head of one class has nothing to choose from.
    expected = torch.tensor(0.0) if multi_head else soft(logits[:, :2], old, 2.0)
    torch.testing.assert_close(losses["loss_preservation"], expected)


def test_the_teachers_do_not_learn(world):
    one = method(world)
    learner, batch = begin(world, one)
    sum(learner(batch).values()).backward()
    for teacher in (one._expert, learner.teacher):
        assert not teacher.training
        assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_batch_without_stored_images_has_no_retrospection(world):
    learner, batch = begin(world, method(world))
    new = [i for i, target in enumerate(batch.targets) if max(target.labelled) > 1]
    batch = Batch([batch.images[i] for i in new], [batch.targets[i] for i in new])
    losses, _, stored = looks(learner, batch)
    assert not stored.any()
    assert losses["loss_retrospection"].item() == 0
    sum(losses.values()).backward()
    assert learner.student.classifier.weight.grad.isfinite().all()


def test_a_batch_of_stored_images_alone_teaches_no_new_class(world):
    learner, batch = begin(world, method(world))
    old = [i for i, target in enumerate(batch.targets) if max(target.labelled) < 2]
    losses, *_ = looks(learner, Batch([batch.images[i] for i in old], [batch.targets[i] for i in old]))
    assert losses["loss_cls"].item() == 0
    assert losses["loss_retrospection"].item() > 0


def test_the_first_task_is_the_base_detectors(tmp_path):
    world, losses = World(tmp_path, tiny_config(), TEXTS), []
    for methods in ([method(world)], []):
        learner, _ = world.begin_first(methods)
        torch.manual_seed(0)
        losses.append(learner(random_batch(2)))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())
    assert not (world.folder / f"task_{FIRST.index}" / "interim").exists()


def test_an_image_was_stored_if_only_old_classes_are_labelled_in_it():
    one = Target.from_boxes(torch.zeros(1, 4), torch.tensor([0]))
    labelled = [{0, 1}, {1}, {2, 3}, {0, 2}, (), None]
    targets = [replace(one, labelled=None if labels is None else frozenset(labels)) for labels in labelled]
    assert was_stored(targets, num_old=2).tolist() == [True, True, False, False, False, False]
