"""ILOD and Faster ILOD: which regions are distilled, and that an unchanged student pays nothing."""

import pytest
import torch
from tiny import FIRST, SECOND, random_batch, tiny_config, tiny_detector

from incdet.engine.learner import Learner, freeze_copy
from incdet.errors import ConfigError
from incdet.methods.base import Pass
from incdet.methods.faster_ilod import FasterIlod
from incdet.methods.ilod import Ilod, draw

KINDS = {"ilod": Ilod, "faster_ilod": FasterIlod}
DISTILLED = {
    "ilod": {"loss_distill_cls", "loss_distill_box"},
    "faster_ilod": {"loss_distill_cls", "loss_distill_box", "loss_distill_feature", "loss_distill_rpn"},
}


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


@pytest.fixture(params=["fpn", "c4"])
def cfg(request):
    return tiny_config(request.param)


def method(name: str, cfg, **changes):
    node = cfg.METHOD[name.upper()].clone()
    node.update(changes)
    return KINDS[name](node)


def learner(cfg, method, teacher=None) -> Learner:
    """The second task of a student that has learned nothing since its teacher was copied."""
    student = tiny_detector(cfg)
    teacher = teacher or freeze_copy(student)
    student.expand_classes(SECOND.num_new)
    # In eval mode both use the same norm statistics, so that an unchanged student is the teacher.
    return Learner(student.eval(), teacher, [method], SECOND)


def distilled(learner: Learner, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    losses = learner(random_batch(2, learner.student.num_classes))
    return {name: value for name, value in losses.items() if name.startswith("loss_distill")}


@pytest.mark.parametrize("boxes", ["teacher", "student"])
def test_a_student_that_has_not_changed_pays_nothing(name, cfg, boxes):
    losses = distilled(learner(cfg, method(name, cfg, BOXES=boxes)))
    assert losses.keys() == DISTILLED[name]
    for value in losses.values():
        assert value.item() == pytest.approx(0, abs=1e-9)


def test_a_student_that_forgot_pays_in_every_term_and_all_of_it_is_taught(name, cfg):
    one = learner(cfg, method(name, cfg, **({"BOX_MARGIN": 0.0} if name == "faster_ilod" else {})))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in one.student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    losses = distilled(one)
    assert all(value.item() > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert one.student.roi_heads.box_predictor.cls_score.weight.grad.any()
    if name == "faster_ilod":
        assert one.student.rpn.head.cls_logits.weight.grad.any()
    assert all(parameter.grad is None for parameter in one.teacher.parameters())


def test_weights_scale_their_terms(name, cfg):
    other = tiny_detector(cfg, seed=7)
    plain = distilled(learner(cfg, method(name, cfg), freeze_copy(other)))
    weights = {"WEIGHT": 2.0}
    if name == "faster_ilod":
        weights |= {"WEIGHT_FEATURE": 3.0, "WEIGHT_RPN": 5.0}
    scaled = distilled(learner(cfg, method(name, cfg, **weights), freeze_copy(other)))
    factor = {"loss_distill_feature": 3, "loss_distill_rpn": 5}
    for loss, value in plain.items():
        torch.testing.assert_close(scaled[loss], factor.get(loss, 2) * value)


def test_there_is_nothing_to_distil_in_the_first_task(name, cfg):
    one = Learner(tiny_detector(cfg), None, [method(name, cfg)], FIRST)
    assert distilled(one) == {}


def teacher_pass(cfg, teacher) -> Pass:
    with torch.no_grad():
        images = teacher.image_pass(random_batch(2))
        images.targets = None
        return Pass(teacher, lambda: images, lambda: teacher.region_pass(images))


def rows(boxes: torch.Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, boxes.tolist()))


@torch.no_grad()
def test_ilod_draws_from_the_regions_that_look_least_like_background(cfg):
    looked = teacher_pass(cfg, tiny_detector(cfg).eval())
    expected = []
    for i, boxes in enumerate(looked.images.proposals):
        given = [boxes[:12] if i == j else boxes[:0] for j in range(2)]
        background = looked.regions_on(given).logits.softmax(dim=1)[:, -1]
        expected.append(rows(boxes[:12][background.argsort()[:6]]))
    settings = {"PROPOSALS": 12, "CANDIDATES": 6, "REGIONS": 4}
    drawn = [method("ilod", cfg, **settings).choose_boxes(looked) for _ in range(10)]
    for i in range(2):
        assert all(len(boxes[i]) == 4 and rows(boxes[i]) <= expected[i] for boxes in drawn)
        assert set().union(*(rows(boxes[i]) for boxes in drawn)) == expected[i]


@torch.no_grad()
def test_faster_ilod_draws_from_the_proposals_of_the_highest_objectness(cfg):
    looked = teacher_pass(cfg, tiny_detector(cfg).eval())
    drawn = [method("faster_ilod", cfg, CANDIDATES=6, REGIONS=4).choose_boxes(looked) for _ in range(10)]
    for i, boxes in enumerate(looked.images.proposals):
        assert all(len(chosen[i]) == 4 for chosen in drawn)
        assert set().union(*(rows(chosen[i]) for chosen in drawn)) == rows(boxes[:6])


def test_a_draw_takes_no_box_twice_and_at_most_what_there_is():
    boxes = torch.arange(20.0).view(5, 4)
    assert len(rows(draw(boxes, 3))) == 3
    assert rows(draw(boxes, 9)) == rows(boxes)
    assert draw(boxes[:0], 3).shape == (0, 4)


def test_on_its_own_boxes_the_student_takes_one_pass_and_the_teacher_sees_the_drawn_ones(name, cfg):
    one = learner(cfg, method(name, cfg, BOXES="student", REGIONS=3))
    passes = {"student": [], "teacher": []}
    for side, detector in (("student", one.student), ("teacher", one.teacher)):
        region_pass = detector.region_pass
        detector.region_pass = lambda images, boxes=None, side=side, original=region_pass: (
            passes[side].append(boxes) or original(images, boxes)
        )
    distilled(one)
    assert passes["student"] == [None]
    assert [[len(image) for image in boxes] for boxes in passes["teacher"]] == [[3, 3]]


def test_boxes_of_nobody_are_refused(name, cfg):
    with pytest.raises(ConfigError, match=r"METHOD\.(FASTER_)?ILOD\.BOXES: expected teacher or student, got 'mine'"):
        method(name, cfg, BOXES="mine")
