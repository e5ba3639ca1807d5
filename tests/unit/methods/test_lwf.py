"""LwF: new rows warm up alone, new objects compete with no old class, and old heads answer as before."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import FIRST, SECOND, World, random_batch, tiny_config
from torch.nn import functional as F

from incdet.engine.learner import Learner, freeze_copy
from incdet.errors import ConfigError
from incdet.losses.multi_label import multi_label_loss
from incdet.methods.lwf import Lwf

CLASSIFICATION = ("TASK", "classification", "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32)
KINDS = {
    "detector": (),
    "linear": CLASSIFICATION,
    "cosine": (*CLASSIFICATION, "MODEL.CLASSIFIER.HEAD", "cosine"),
    "several_labels": (*CLASSIFICATION, "MODEL.CLASSIFIER.MULTI_LABEL", True),
}
TEXTS = ("a", "b", "a", "c", "d", "c")  # one object per image, so that classifiers can read them too


def world_of(folder, *overrides, split="2+2") -> World:
    return World(folder, tiny_config("fpn", "TASKS.SPLIT", split, *overrides), TEXTS, split)


@pytest.fixture(params=KINDS)
def world(request, tmp_path):
    return world_of(tmp_path, *KINDS[request.param])


def method(world: World, **changes) -> Lwf:
    node = world.cfg.METHOD.LWF.clone()
    node.update({"WARMUP_ITER": 0, **changes})
    return Lwf(node)


def moved(learner: Learner) -> Learner:
    """With a student that is no longer its teacher."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return learner


def step_of(learner: Learner, batch) -> tuple[dict, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The losses of a batch, and logits, teacher's logits and labels of its regions."""
    seen = []
    losses_of = learner.methods[0].losses
    learner.methods[0].losses = lambda step: seen.append(step) or losses_of(step)
    losses = learner(batch)
    student, teacher = seen[0].student.regions, seen[0].teacher.regions
    return losses, student.logits, teacher.logits, student.labels


# ---------------------------------------------------------------------- the old classes


def test_a_student_that_has_not_changed_is_pulled_nowhere(world):
    learner, view = world.begin_second([method(world)])
    learner.student.eval()  # the norms' statistics are the teacher's too
    learner(world.batch(view))["loss_lwf"].backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in learner.student.parameters())


def test_old_answers_are_softened_and_the_weight_counts(tmp_path):
    world = world_of(tmp_path, *CLASSIFICATION)
    learner, view = world.begin_second([method(world, WEIGHT=3.0, TEMPERATURE=4.0)])
    losses, student, teacher, _ = step_of(moved(learner), world.batch(view))
    expected = F.cross_entropy(student[:, :2] / 4, (teacher / 4).softmax(dim=1))
    torch.testing.assert_close(losses["loss_lwf"], 3 * expected)


def test_a_detectors_old_answer_is_an_old_class_or_the_background(tmp_path):
    world = world_of(tmp_path)
    learner, view = world.begin_second([method(world)])
    losses, student, teacher, _ = step_of(moved(learner), world.batch(view))
    expected = F.cross_entropy(student[:, [0, 1, 4]] / 2, (teacher / 2).softmax(dim=1))
    torch.testing.assert_close(losses["loss_lwf"], expected)


@pytest.mark.parametrize("multi_head", [True, False])
def test_every_old_head_answers_by_itself_and_one_head_for_all_its_classes(tmp_path, multi_head):
    world = world_of(tmp_path, *CLASSIFICATION, "MODEL.CLASSIFIER.MULTI_HEAD", multi_head, split="1+1+2")
    third = world.stream[2]
    teacher = copy.deepcopy(world.first)
    teacher.expand_classes(1)
    teacher, student = freeze_copy(teacher), copy.deepcopy(teacher)
    student.expand_classes(2)
    lwf = method(world)
    context = world.context(third, student, teacher)
    lwf.begin_task(context)
    learner = moved(Learner(student.train(), teacher, [lwf], third))
    losses, logits, old, labels = step_of(learner, world.batch(context.view))
    heads = [slice(0, 1), slice(1, 2)] if multi_head else [slice(0, 2)]
    expected = sum(F.cross_entropy(logits[:, h] / 2, (old[:, h] / 2).softmax(dim=1)) for h in heads)
    torch.testing.assert_close(losses["loss_lwf"], expected)
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(logits[:, 2:], labels - 2))


# ---------------------------------------------------------------------- the new classes


@pytest.mark.parametrize("overrides", [(), CLASSIFICATION], ids=["detector", "classifier"])
def test_a_new_object_competes_with_no_old_class(tmp_path, overrides):
    world = world_of(tmp_path, *overrides)
    learner, view = world.begin_second([method(world)])
    losses, logits, _, labels = step_of(learner, world.batch(view))
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(logits[:, 2:], labels - 2))
    losses["loss_cls"].backward()
    classifier, rows = learner.student.classifier, learner.student.classifier_rows
    assert not classifier.weight.grad[rows[:2]].any()
    assert classifier.weight.grad[rows[2:4]].any()


def test_an_old_object_competes_with_every_class(tmp_path):
    """As stored images and pseudo-labels bring it."""
    world = world_of(tmp_path, *CLASSIFICATION)
    learner, view = world.begin_second([method(world)])
    batch = world.batch(view)
    batch.targets[0] = replace(batch.targets[0], labels=torch.tensor([1]))
    losses, logits, _, labels = step_of(learner, batch)
    parts = F.cross_entropy(logits[:1], labels[:1]), F.cross_entropy(logits[1:, 2:], labels[1:] - 2)
    torch.testing.assert_close(losses["loss_cls"], parts[0] / 4 + parts[1] * 3 / 4)


def test_several_labels_are_taught_and_kept_class_by_class(tmp_path):
    world = world_of(tmp_path, *KINDS["several_labels"])
    learner, view = world.begin_second([method(world)])
    batch = world.batch(view)
    losses, logits, teacher, _ = step_of(moved(learner), batch)
    present = torch.tensor([[label in target.labels for label in (2, 3)] for target in batch.targets])
    torch.testing.assert_close(losses["loss_cls"], multi_label_loss(logits[:, 2:], present.long()))
    expected = F.binary_cross_entropy_with_logits(logits[:, :2], teacher.sigmoid())
    torch.testing.assert_close(losses["loss_lwf"], expected)


def test_the_first_task_is_the_base_detectors(tmp_path):
    world, losses = world_of(tmp_path), []
    for methods in ([method(world, WARMUP_ITER=5)], []):
        learner, _ = world.begin_first(methods)
        torch.manual_seed(0)
        losses.append(learner(random_batch(2)))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())
    assert not (world.folder / f"task_{FIRST.index}" / "warmup").exists()


# ---------------------------------------------------------------------- warm-up


def begun(world: World, lwf: Lwf):
    """The student before and after the method has begun the second task."""
    teacher, student = freeze_copy(world.first), copy.deepcopy(world.first)
    torch.manual_seed(2)
    student.expand_classes(2)
    before = copy.deepcopy(student)
    lwf.begin_task(world.context(SECOND, student, teacher))
    return before, student


@pytest.mark.parametrize("optimiser", ["SGD", "AdamW"])
def test_new_rows_warm_up_alone_and_then_everything_trains(world, optimiser):
    world.cfg.SOLVER.OPTIMIZER = optimiser
    world.cfg.SOLVER.WEIGHT_DECAY = 0.1
    world.cfg.SOLVER.WARMUP_ITERS = 0
    before, student = begun(world, method(world, WARMUP_ITER=3))
    old, new = before.state_dict(), student.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    grown = {name for name, _ in student.classifier.named_parameters() if name != "scale"}
    assert {name.rpartition(".")[2] for name in changed} == grown
    rows = student.classifier_rows
    for name in grown:
        was, now = getattr(before.classifier, name).detach(), getattr(student.classifier, name).detach()
        assert torch.equal(now[rows[:2] + rows[4:]], was[rows[:2] + rows[4:]])
        assert (now[rows[2:4]] != was[rows[2:4]]).any()
    trained = {name: parameter.requires_grad for name, parameter in before.named_parameters()}
    assert trained == {name: parameter.requires_grad for name, parameter in student.named_parameters()}


def test_a_warm_up_teaches_the_new_classes(tmp_path):
    world = world_of(tmp_path, *CLASSIFICATION, "SOLVER.WARMUP_ITERS", 0)
    detectors = begun(world, method(world, WARMUP_ITER=10))
    batch, losses = world.batch(world.context(SECOND).view), []
    for detector in detectors:
        with detector.evaluating(), torch.no_grad():
            regions = detector.region_pass(detector.image_pass(batch))
        losses.append(F.cross_entropy(regions.logits[:, 2:], regions.labels - 2))
    assert losses[1] < losses[0]


def test_a_task_that_begins_again_finds_its_warm_up(world):
    _, student = begun(world, method(world, WARMUP_ITER=2))
    _, again = begun(world, method(world, WARMUP_ITER=2))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())
    assert len(list((world.folder / "task_2" / "warmup").glob("*.safetensors"))) == 1


def test_after_the_warm_up_old_rows_train_as_well(tmp_path):
    world = world_of(tmp_path, *CLASSIFICATION)
    lwf = method(world, WARMUP_ITER=1)
    learner, _ = world.begin_second([lwf])
    rows = learner.student.classifier.weight
    before = rows.detach().clone()
    with lwf.around_update({"head.weight": rows}), torch.no_grad():
        rows += 1
    assert torch.equal(rows, before + 1)


def test_without_a_warm_up_nothing_changes_before_the_task(world):
    before, student = begun(world, method(world))
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("iterations", [-1, 2.5, "many"])
def test_a_warm_up_that_is_no_number_of_iterations_is_refused(tmp_path, iterations):
    with pytest.raises(ConfigError, match=r"METHOD\.LWF\.WARMUP_ITER: expected a whole number of iterations"):
        method(world_of(tmp_path), WARMUP_ITER=iterations)
