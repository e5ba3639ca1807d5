"""Distillation through the old predictor: who is taught by it and who is not."""

from functools import partial

import pytest
import torch
from tiny import SECOND, World, random_batch, tiny_config, tiny_detector
from torch import nn

from incdet.engine.learner import Learner, freeze_copy
from incdet.methods.base import Pass, Step
from incdet.methods.frozen_head_distill import FrozenHeadDistill

LOSSES = ("loss_frozen_head_cls", "loss_frozen_head_box")


@pytest.fixture(params=[("fpn", False), ("c4", True)], ids=["fpn", "c4-agnostic"])
def learner(request) -> Learner:
    """The second task of a student that has learned nothing since its teacher was copied."""
    neck, agnostic = request.param
    cfg = tiny_config(neck, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic)
    student = tiny_detector(cfg)
    teacher = freeze_copy(student)
    student.expand_classes(SECOND.num_new)
    # In eval mode both use the same norm statistics, so that an unchanged student is the teacher.
    return Learner(student.eval(), teacher, [FrozenHeadDistill(cfg.METHOD.FROZEN_HEAD_DISTILL)], SECOND)


def distilled(learner: Learner) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    losses = learner(random_batch(2, SECOND.num_seen))
    return {name: losses[name] for name in LOSSES}


def test_a_student_that_has_not_changed_pays_nothing(learner):
    assert [value.item() for value in distilled(learner).values()] == pytest.approx([0, 0], abs=1e-6)


def test_a_student_whose_predictor_alone_changed_pays_nothing(learner):
    nn.init.normal_(learner.student.classifier.weight)
    assert [value.item() for value in distilled(learner).values()] == pytest.approx([0, 0], abs=1e-6)


def test_features_that_moved_are_taught_and_the_predictor_is_not(learner):
    with torch.no_grad():
        for parameter in learner.student.box_head.parameters():
            parameter.mul_(1.5)
    losses = distilled(learner)
    assert all(value > 1e-4 for value in losses.values())
    sum(losses.values()).backward()
    predictor = {id(p) for p in learner.student.roi_heads.box_predictor.parameters()}
    assert all(p.grad is None or not p.grad.any() for p in learner.student.parameters() if id(p) in predictor)
    assert any(p.grad is not None and p.grad.any() for p in learner.student.box_head.parameters())
    assert all(p.grad is None for p in learner.teacher.parameters())


def test_without_an_interim_teacher_regions_on_new_objects_are_free(learner):
    (method,) = learner.methods
    images = learner.student.image_pass(random_batch(2, SECOND.num_seen))
    regions = learner.student.region_pass(images)
    features = regions.features.detach().requires_grad_()
    regions.features = features + 1.0
    student = Pass(learner.student, lambda: images, lambda: regions)
    look = partial(learner._look, student)
    losses = method.losses(Step(SECOND, random_batch(2, SECOND.num_seen), student, look(learner.teacher), look))
    sum(losses.values()).backward()
    pulled = features.grad.abs().amax(dim=1) > 0
    is_new = (regions.labels >= SECOND.num_old) & (regions.labels < SECOND.num_seen)
    assert is_new.any()
    assert torch.equal(pulled, ~is_new)


def test_the_interim_teacher_takes_the_regions_on_new_objects(tmp_path):
    cfg = tiny_config("fpn", "METHOD.FROZEN_HEAD_DISTILL.INTERIM", True, "SOLVER.MAX_ITER", 2)
    world = World(tmp_path, cfg)
    method = FrozenHeadDistill(cfg.METHOD.FROZEN_HEAD_DISTILL)
    learner, view = world.begin_second([method])
    assert (tmp_path / "task_2" / "interim" / "model.safetensors").exists()
    assert method._interim.num_classes == SECOND.num_new
    losses = learner(world.batch(view))
    sum(losses[name] for name in LOSSES).backward()
    assert all(p.grad is None for p in method._interim.parameters())
    assert all(torch.isfinite(losses[name]) and losses[name] > 0 for name in LOSSES)


def test_the_weight_scales_both_terms(learner):
    with torch.no_grad():
        for parameter in learner.student.box_head.parameters():
            parameter.mul_(1.5)
    before = distilled(learner)
    (method,) = learner.methods
    method.cfg.WEIGHT = 10.0
    after = distilled(learner)
    for name in LOSSES:
        torch.testing.assert_close(after[name] * 2, before[name])
