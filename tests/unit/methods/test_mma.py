"""MMA: what replaces the classification loss, what the distillation asks, and how new classes begin."""

import pytest
import torch
from tiny import FIRST, SECOND, World, random_batch, tiny_config, tiny_detector
from torch.optim import SGD

from incdet.backends.base import BASE_LOSSES
from incdet.engine.checkpoint import TaskState
from incdet.engine.learner import Learner, freeze_copy
from incdet.errors import ConfigError
from incdet.methods.finetune import Finetune
from incdet.methods.mma import Mma

DISTILLED = {"loss_distill_cls", "loss_distill_box", "loss_distill_rpn"}


@pytest.fixture
def cfg():
    return tiny_config()


def method(cfg, **changes) -> Mma:
    node = cfg.METHOD.MMA.clone()
    node.update(changes)
    return Mma(node)


def learner(cfg, method, teacher=None) -> Learner:
    """The second task of a student that has learned nothing since its teacher was copied."""
    student = tiny_detector(cfg)
    teacher = teacher or freeze_copy(student)
    student.expand_classes(SECOND.num_new)
    # In eval mode both use the same norm statistics, so that an unchanged student is the teacher.
    return Learner(student.eval(), teacher, [method], SECOND)


def losses_of(learner: Learner, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return learner(random_batch(2, learner.student.num_classes))


def test_the_first_task_has_the_detectors_own_losses(cfg):
    losses = losses_of(Learner(tiny_detector(cfg), None, [method(cfg)], FIRST))
    plain = losses_of(Learner(tiny_detector(cfg), None, [Finetune(cfg)], FIRST))
    assert losses.keys() == set(BASE_LOSSES)
    assert all(torch.equal(value, plain[name]) for name, value in losses.items())


def test_only_the_classification_loss_is_replaced_and_background_costs_less(cfg):
    losses, plain = losses_of(learner(cfg, method(cfg))), losses_of(learner(cfg, Finetune(cfg)))
    assert losses.keys() == set(BASE_LOSSES) | DISTILLED
    assert {name for name in BASE_LOSSES if not torch.equal(losses[name], plain[name])} == {"loss_cls"}
    assert losses["loss_cls"] < plain["loss_cls"]


def test_the_classification_loss_is_of_the_sampled_regions(cfg):
    one = learner(cfg, method(cfg))
    torch.manual_seed(0)
    regions = one.student.region_pass(one.student.image_pass(random_batch(2, SECOND.num_seen)))
    p = regions.logits.softmax(dim=1)
    labelled = p[torch.arange(len(p)), regions.labels]
    counted = torch.where(regions.labels == SECOND.num_seen, 1 - p[:, SECOND.num_old : -1].sum(dim=1), labelled)
    torch.testing.assert_close(losses_of(one)["loss_cls"], -counted.log().mean())


@pytest.mark.parametrize("boxes", ["teacher", "student"])
def test_a_student_that_only_gave_background_to_new_classes_pays_the_entropy_and_is_not_pulled(cfg, boxes):
    one = learner(cfg, method(cfg, BOXES=boxes))
    one.student.start_from_background(SECOND.num_new)
    losses = losses_of(one)
    for name in ("loss_distill_box", "loss_distill_rpn"):
        assert losses[name].item() == pytest.approx(0, abs=1e-9)
    losses["loss_distill_cls"].backward()
    assert losses["loss_distill_cls"].item() > 0
    assert one.student.classifier.weight.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_a_student_that_forgot_is_pulled_by_every_term(cfg):
    one = learner(cfg, method(cfg, BOX_MARGIN=0.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in one.student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    losses = losses_of(one)
    assert all(losses[name].item() > 0 for name in DISTILLED)
    sum(losses[name] for name in DISTILLED).backward()
    assert one.student.classifier.weight.grad.any()
    assert one.student.rpn.head.cls_logits.weight.grad.any()
    assert all(parameter.grad is None for parameter in one.teacher.parameters())


def test_weights_scale_their_terms(cfg):
    other = freeze_copy(tiny_detector(cfg, seed=7))
    plain = losses_of(learner(cfg, method(cfg, WEIGHT=1.0), other))
    scaled = losses_of(learner(cfg, method(cfg, WEIGHT=3.0, WEIGHT_RPN=5.0), other))
    factors = {"loss_distill_cls": 3, "loss_distill_box": 3, "loss_distill_rpn": 5}
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], factors.get(name, 1) * value)


@pytest.mark.parametrize(("num_new", "weight"), [(1, 1.0), (2, 1.0), (5, 0.5), (10, 0.1), (40, 0.1)])
def test_the_more_new_classes_the_less_is_distilled(cfg, num_new, weight):
    assert method(cfg).weight(num_new) == weight
    assert method(cfg, WEIGHT=0.3).weight(num_new) == 0.3
    assert method(cfg, WEIGHT=0).weight(num_new) == 0


def test_a_weight_that_is_no_number_is_refused(cfg):
    with pytest.raises(ConfigError, match=r"METHOD\.MMA\.WEIGHT: expected a number, or None .*, got 'high'"):
        method(cfg, WEIGHT="high")


def test_boxes_of_nobody_are_refused(cfg):
    with pytest.raises(ConfigError, match=r"METHOD\.MMA\.BOXES: expected teacher or student, got 'mine'"):
        method(cfg, BOXES="mine")


# ---------------------------------------------------------------------- the beginning


@pytest.fixture
def world(tmp_path, cfg):
    return World(tmp_path, cfg)


def background_and_new(detector, features) -> torch.Tensor:
    """The probability of what the first task's detector calls background."""
    return detector.predictor(features)[0].softmax(dim=1)[:, 2:].sum(dim=1)


@torch.no_grad()
@pytest.mark.parametrize("wanted", [True, False])
def test_new_classes_begin_as_parts_of_the_background_where_this_is_wanted(world, cfg, wanted):
    one, _ = world.begin_second([method(cfg, INIT_FROM_BACKGROUND=wanted)])
    features = torch.randn(6, one.student.classifier.in_features)
    before, after = background_and_new(one.teacher, features), background_and_new(one.student, features)
    assert torch.allclose(before, after, atol=1e-6) is wanted


def test_the_first_task_begins_as_any_other(world, cfg):
    before = {name: value.clone() for name, value in world.first.state_dict().items()}
    one, _ = world.begin_first([method(cfg, INIT_FROM_BACKGROUND=True)])
    assert all(torch.equal(value, before[name]) for name, value in one.student.state_dict().items())


def test_what_was_learned_outlives_the_beginning_of_a_second_life(world, cfg, tmp_path):
    def state() -> TaskState:
        one, _ = world.begin_second([method(cfg, INIT_FROM_BACKGROUND=True)])
        optimizer = SGD(one.student.parameters(), lr=0.1)
        return TaskState(one.student, optimizer, None, world.fabric.strategy.precision, one.methods)

    first = state()
    with torch.no_grad():
        first.student.classifier.bias += torch.arange(5.0)
    first.save(tmp_path / "state.pt", 3, 1.0)
    second = state()
    assert not torch.equal(second.student.classifier.bias, first.student.classifier.bias)
    assert second.restore(tmp_path / "state.pt") == (3, 1.0)
    assert torch.equal(second.student.classifier.bias, first.student.classifier.bias)
