"""PPI: the old detector's answers bound the shared part of the step, and teach the classifier."""

import copy

import pytest
import torch
from tiny import SECOND, World, random_batch, tiny_config
from torch.nn import functional as F

from incdet.engine.learner import Learner, freeze_copy
from incdet.errors import ConfigError
from incdet.methods import build_methods
from incdet.methods.base import Method
from incdet.methods.lwf import Lwf
from incdet.methods.ppi import Ppi, logits_of_fixed
from incdet.structures import Batch
from incdet.tasks import build_stream

CLASSIFICATION = (
    "TASK", "classification",
    "MODEL.BACKBONE.NAME", "mlp",
    "MODEL.BACKBONE.WIDTH", 8,
    "INPUT.MIN_SIZE_TRAIN", (8,),
    "INPUT.MIN_SIZE_TEST", 8,
)  # fmt: skip
CLASSIFIERS = {
    "linear": (),
    "cosine": ("MODEL.CLASSIFIER.HEAD", "cosine"),
    "heads": ("MODEL.CLASSIFIER.MULTI_HEAD", True),
    "several_labels": ("MODEL.CLASSIFIER.MULTI_LABEL", True),
}
TEXTS = ("a", "b", "a", "c", "d", "c")
STEPS = build_stream("1+1+2", ("a", "b", "c", "d"))


def method(world: World, **changes) -> Ppi:
    node = world.cfg.METHOD.PPI.clone()
    node.update(changes)
    return Ppi(node)


@pytest.fixture(params=CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def world(request, tmp_path):
    cfg = tiny_config("fpn", *CLASSIFICATION, "TASKS.SPLIT", "2+2", *request.param)
    return World(tmp_path, cfg, TEXTS)


def second(world: World, *methods: Method):
    """A learner in the second task whose student has moved away from its teacher, and a batch."""
    learner, view = world.begin_second(list(methods))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return learner, world.batch(view)


def logits_of(model, batch):
    return model.region_pass(model.image_pass(Batch(batch.images, None))).logits


def trained(module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def flat(gradients) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_the_constraint_is_the_distance_from_the_teachers_answers(world):
    learner, batch = second(world, method(world, TEMPERATURE=2.0))
    losses = learner(batch)
    student, teacher = logits_of(learner.student, batch)[:, :2], logits_of(learner.teacher, batch)
    if learner.student.multi_label:
        expected = F.binary_cross_entropy_with_logits(student, teacher.sigmoid())
    else:
        expected = -((teacher / 2).softmax(1) * (student / 2).log_softmax(1)).sum(1).mean()
    assert learner.constraints.keys() == {"constraint_task_1"}
    assert torch.allclose(learner.constraints["constraint_task_1"], expected, atol=1e-6)
    assert torch.allclose(losses["loss_old_classifier"], expected, atol=1e-6)


def test_the_constraint_bounds_the_shared_part_and_the_classifier_learns_the_rest(world):
    learner, batch = second(world, method(world))
    losses = learner(batch)
    shared = trained(learner.student.backbone)
    head = trained(learner.student.classifier)
    (bound,) = learner.constraints.values()
    reach = {"allow_unused": True, "retain_graph": True}
    assert all(gradient is None for gradient in torch.autograd.grad(bound, head, **reach))
    assert all(gradient is None for gradient in torch.autograd.grad(losses["loss_old_classifier"], shared, **reach))
    assert any(gradient.any() for gradient in torch.autograd.grad(losses["loss_old_classifier"], head, **reach))


def test_of_every_past_task_there_is_a_constraint_within_its_own_classes(tmp_path):
    world = World(tmp_path, tiny_config("fpn", *CLASSIFICATION), TEXTS, split="1+1+2")
    ppi = method(world)
    student = copy.deepcopy(world.first)
    student.expand_classes(1)
    teacher = freeze_copy(student)
    student.expand_classes(2)
    ppi.begin_task(world.context(STEPS[2], student, teacher))
    learner = Learner(student.train(), teacher, [ppi], STEPS[2])
    learner(random_batch(2, 1))
    # A softmax over one class is always sure: what it costs is nothing, whatever the logits.
    assert [bound.item() for bound in learner.constraints.values()] == [0.0, 0.0]
    assert list(learner.constraints) == ["constraint_task_1", "constraint_task_2"]


def test_the_projected_step_moves_away_from_no_answer(world):
    learner, batch = second(world, method(world))
    losses = learner(batch)
    total = sum(losses.values())
    (bound,) = learner.constraints.values()
    shared = trained(learner.student.backbone)
    head = trained(learner.student.classifier)
    away = flat(torch.autograd.grad(bound, shared, retain_graph=True))
    plain = flat(torch.autograd.grad(total, shared, retain_graph=True))
    of_head = flat(torch.autograd.grad(total, head, retain_graph=True))
    with learner.around_backward(lambda rows: rows):
        total.backward()
    projected = flat(parameter.grad for parameter in shared)
    assert projected @ away >= -1e-5 * plain.norm() * away.norm()
    expected = plain - min((plain @ away).item(), 0.0) / (away @ away) * away
    assert torch.allclose(projected, expected, atol=1e-5 * plain.norm().item())
    assert torch.equal(flat(parameter.grad for parameter in head), of_head)


def test_a_margin_adds_every_old_gradient_that_often(tmp_path):
    world = World(tmp_path, tiny_config("fpn", *CLASSIFICATION), TEXTS)
    gradient, constraints = torch.tensor([-0.5, 1.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert method(world).project(gradient, constraints).tolist() == pytest.approx([0.0, 1.0])
    assert method(world, MARGIN=1.0).project(gradient, constraints).tolist() == pytest.approx([0.5, 3.0])
    assert method(world, MARGIN=1.0).project(-gradient, constraints[:1]).tolist() == [0.5, -1.0]


def test_sub_steps_train_the_classifier_alone_on_the_features_of_the_batch(world):
    world.cfg.SOLVER.merge_from_list(["BASE_LR", 0.1, "WARMUP_ITERS", 0, "WEIGHT_DECAY", 0.01])
    learner, batch = second(world, method(world, SUB_STEPS=3))
    learner(batch)
    student = learner.student
    before = copy.deepcopy(student)
    with learner.around_update():
        pass
    for name, value in student.backbone.named_parameters():
        assert torch.equal(value, before.backbone.get_parameter(name))

    head = before.classifier
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    images = before.image_pass(batch)
    regions = before.region_pass(images)
    features, teacher = regions.features.detach(), logits_of(learner.teacher, batch)
    for _ in range(2):  # the first of the three is the optimiser's own
        regions.logits, _ = before.predictor(features)
        old = regions.logits[:, :2]
        if student.multi_label:
            distance = F.binary_cross_entropy_with_logits(old, teacher.sigmoid())
        else:
            distance = F.cross_entropy(old, teacher.softmax(dim=1))
        optimizer.zero_grad()
        if not student.multi_label:  # no old class is a rival of a new one
            regions.logits = regions.logits.masked_fill(torch.arange(4) < 2, -1e30)
        (before.region_losses(regions)["loss_cls"] + distance).backward()
        optimizer.step()
    for name, value in student.classifier.named_parameters():
        assert torch.allclose(value, head.get_parameter(name), atol=1e-6)


def test_one_sub_step_is_the_optimisers_own(world):
    learner, batch = second(world, method(world, SUB_STEPS=1))
    learner(batch)
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    with learner.around_update():
        pass
    assert all(torch.equal(value, before[name]) for name, value in learner.student.state_dict().items())


def test_a_resumed_method_goes_on_to_the_bit(world):
    """Momentum and learning rate of the sub-steps belong to the state."""
    world.cfg.SOLVER.merge_from_list(["WARMUP_ITERS", 100])
    learner, batch = second(world, method(world))

    def take(ppi: Ppi) -> dict[str, torch.Tensor]:
        learner.methods[:] = [ppi]
        learner(batch)
        with learner.around_update():
            pass
        return copy.deepcopy(learner.student.state_dict())

    first, again = learner.methods[0], method(world)
    weights, state = take(first), copy.deepcopy(first.state_dict())
    unbroken = take(first)
    learner.student.load_state_dict(weights)
    again.begin_task(world.context(SECOND, learner.student, learner.teacher))
    again.load_state_dict(state)
    resumed = take(again)
    assert any(not torch.equal(value, weights[name]) for name, value in unbroken.items())
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


def test_the_first_task_is_trained_as_ever(world):
    learner, view = world.begin_first([method(world)])
    assert learner(world.batch(view)).keys() == {"loss_cls"}
    assert learner.constraints == {}
    before = copy.deepcopy(learner.student.state_dict())
    with learner.around_update():
        pass
    assert all(torch.equal(value, before[name]) for name, value in learner.student.state_dict().items())


def test_the_labels_are_for_the_new_tasks_columns(world):
    learner, batch = second(world, method(world))
    found = learner(batch)["loss_cls"]
    logits = logits_of(learner.student, batch)
    labels = torch.stack([target.labels[0] for target in batch.targets])
    if learner.student.multi_label:
        expected = F.binary_cross_entropy_with_logits(logits[:, 2:], F.one_hot(labels - 2, 2).float())
    else:
        expected = F.cross_entropy(logits[:, 2:], labels - 2)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("names", [("lwf", "ppi"), ("ppi", "lwf")])
def test_lwf_adds_to_the_loss_what_ppi_bounds(world, names):
    world.cfg.merge_from_list(["METHODS", names, "METHOD.LWF.WARMUP_ITER", 0])
    methods = {type(each): each for each in build_methods(world.cfg)}
    learner, batch = second(world, *methods.values())
    together = learner(batch)
    assert together.keys() == {"loss_cls", "loss_lwf", "loss_old_classifier"}
    assert learner.constraints.keys() == {"constraint_task_1"}
    learner.methods[:] = [methods[Lwf]]
    alone = learner(batch)
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@pytest.mark.parametrize("backend", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_a_detectors_answer_is_the_old_classes_and_the_background_of_a_region(tmp_path, backend):
    world = World(tmp_path, tiny_config("fpn", "BACKEND", backend))
    learner, batch = second(world, method(world))
    torch.manual_seed(0)
    learner(batch)
    torch.manual_seed(0)
    images = learner.student.image_pass(batch)
    regions = learner.student.region_pass(images)
    boxes = regions.boxes_per_image(len(batch))
    teacher = learner.teacher.region_pass(learner.teacher.image_pass_like(images), boxes).logits
    expected = F.cross_entropy(regions.logits[:, [0, 1, 4]], teacher.softmax(dim=1))
    assert torch.allclose(learner.constraints["constraint_task_1"], expected, atol=1e-5)
    assert torch.allclose(logits_of_fixed(learner.student, regions.features), regions.logits, atol=1e-5)


def test_a_classifier_without_steps_is_refused(tmp_path):
    world = World(tmp_path, tiny_config("fpn", *CLASSIFICATION), TEXTS)
    with pytest.raises(ConfigError, match=r"METHOD\.PPI\.SUB_STEPS: expected at least one step .* got 0"):
        method(world, SUB_STEPS=0)
