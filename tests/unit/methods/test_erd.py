"""ERD: which answers of the old detector are distilled, and that an unchanged student pays nothing."""

import pytest
import torch
from tiny import FIRST, SECOND, random_batch, tiny_config, tiny_detector

from incdet.engine.learner import Learner, freeze_copy
from incdet.methods.erd import Erd
from incdet.structures import RegionOutputs

NAMES = {"loss_elastic_cls", "loss_elastic_box", "loss_elastic_rpn"}


@pytest.fixture(params=[("fpn", False), ("fpn", True), ("c4", False)], ids=["fpn", "fpn-agnostic", "c4"])
def cfg(request):
    neck, agnostic = request.param
    return tiny_config(neck, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic)


def method(cfg, **changes) -> Erd:
    node = cfg.METHOD.ERD.clone()
    node.update({"DEVIATIONS": 1.0, **changes})  # a random detector's answers lie close together
    return Erd(node)


def learner(cfg, method, teacher=None) -> Learner:
    """The second task of a student that has learned nothing since its teacher was copied."""
    student = tiny_detector(cfg)
    teacher = teacher or freeze_copy(student)
    student.expand_classes(SECOND.num_new)
    # In eval mode both use the same norm statistics, so that an unchanged student is the teacher.
    return Learner(student.eval(), teacher, [method], SECOND)


def elastic(learner: Learner) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    losses = learner(random_batch(2, learner.student.num_classes))
    return {name: value for name, value in losses.items() if name.startswith("loss_elastic")}


def boxes_seen(learner: Learner) -> list[torch.Tensor]:
    """How many boxes per image the student was shown beside its own."""
    seen, region_pass = [], learner.student.region_pass

    def watched(images, boxes=None):
        seen.append(boxes)
        return region_pass(images, boxes)

    learner.student.region_pass = watched
    elastic(learner)
    return [boxes for boxes in seen if boxes is not None]


def test_a_student_that_has_not_changed_pays_nothing(cfg):
    losses = elastic(learner(cfg, method(cfg)))
    assert losses.keys() == NAMES
    for value in losses.values():
        assert value.item() == pytest.approx(0, abs=1e-9)


def test_a_student_that_forgot_is_pulled_by_every_term(cfg):
    one = learner(cfg, method(cfg), freeze_copy(tiny_detector(cfg, seed=3)))
    losses = elastic(one)
    assert all(value.item() > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert one.student.classifier.weight.grad[: SECOND.num_old].any()
    assert one.student.roi_heads.box_predictor.bbox_pred.weight.grad.any()
    assert one.student.rpn.head.cls_logits.weight.grad.any()
    assert one.student.rpn.head.bbox_pred.weight.grad.any()
    assert all(parameter.grad is None for parameter in one.teacher.parameters())


def test_weights_scale_their_terms(cfg):
    other = freeze_copy(tiny_detector(cfg, seed=3))
    plain = elastic(learner(cfg, method(cfg), other))
    scaled = elastic(learner(cfg, method(cfg, WEIGHT=2.0, WEIGHT_RPN=5.0), other))
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], (5 if name == "loss_elastic_rpn" else 2) * value)


def test_there_is_nothing_to_distil_in_the_first_task(cfg):
    assert elastic(Learner(tiny_detector(cfg), None, [method(cfg)], FIRST)) == {}


def test_nothing_that_stands_out_costs_nothing(cfg):
    one = learner(cfg, method(cfg, DEVIATIONS=100.0), freeze_copy(tiny_detector(cfg, seed=3)))
    assert boxes_seen(one) == []
    assert {name: value.item() for name, value in elastic(one).items()} == dict.fromkeys(NAMES, 0.0)


def test_the_student_looks_once_and_only_at_what_was_chosen_among_the_best_proposals(cfg):
    one = learner(cfg, method(cfg, PROPOSALS=12), freeze_copy(tiny_detector(cfg, seed=3)))
    (seen,) = boxes_seen(one)
    with torch.no_grad():
        images = one.teacher.image_pass_like(one.student.image_pass(random_batch(2, SECOND.num_seen)))
        best = [set(map(tuple, boxes[:12].tolist())) for boxes in images.proposals]
    for boxes, candidates in zip(seen, best, strict=True):
        assert 0 < len(boxes) < 12
        assert set(map(tuple, boxes.tolist())) <= candidates


# ---------------------------------------------------------------------- the choice

CERTAIN, UNSURE = [6.0, 0.0, 0.0], [0.0, 0.0, 6.0]  # of two classes and the background


def answers(*images: list[list[float]]) -> RegionOutputs:
    """The old detector's logits of some regions per image, none of which overlaps another."""
    logits = torch.tensor([row for rows in images for row in rows])
    count, index = len(logits), torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(images)])
    corners = 20.0 * torch.arange(count)[:, None].expand(-1, 2)
    boxes = torch.cat([corners, corners + 10], dim=1)
    return RegionOutputs(
        torch.zeros(count, 1, 1, 1), torch.zeros(count, 1), logits, torch.zeros(count, 2, 4), boxes, index
    )


def test_every_image_has_a_threshold_of_its_own():
    teacher = answers([UNSURE] * 7 + [CERTAIN], [UNSURE] * 8, [[0.0, 2.0, 2.0]] + [UNSURE] * 7)
    chosen = method(tiny_config(), DEVIATIONS=2.0).choose(teacher, 3)
    assert [rows.tolist() for rows in chosen] == [[7, 16], [7, 16], [0, 1]]


def test_logits_and_boxes_are_chosen_apart():
    torn = [5.0, 5.0, 0.0]  # half and half: less sure of its best class, but two answers for boxes
    teacher = answers([UNSURE] * 10 + [CERTAIN, torn])
    by_logits, by_box, classes = method(tiny_config(), DEVIATIONS=1.5).choose(teacher, 1)
    assert by_logits.tolist() == [10]
    assert sorted(zip(by_box.tolist(), classes.tolist(), strict=True)) == [(10, 0), (11, 0), (11, 1)]


def test_an_object_found_twice_keeps_both_logits_and_one_box():
    teacher = answers([UNSURE] * 14 + [CERTAIN, [7.0, 0.0, 0.0]])
    teacher.boxes[14] = teacher.boxes[15] + 1
    by_logits, by_box, classes = method(tiny_config(), DEVIATIONS=2.0).choose(teacher, 1)
    assert (by_logits.tolist(), by_box.tolist(), classes.tolist()) == ([14, 15], [15], [0])
