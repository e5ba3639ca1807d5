from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from incdet.engine.learner import Learner, Sealed, check_losses, freeze_copy
from incdet.errors import DivergenceError, MethodError
from incdet.methods.base import Method
from incdet.structures import IGNORED, Batch, RegionOutputs
from incdet.tasks import build_stream

FIRST, SECOND = build_stream("1+1", ("a", "b"))
BATCH = Batch([torch.zeros(3, 4, 4)], None, ["image"])


class FakeDetector(nn.Module):
    """Records what it is asked; its only base losses are a and b."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm1d(1)
        self.calls = []

    def shares_frozen_stages_with(self, other):
        return True

    def image_pass(self, batch):
        self.calls.append(("image_pass", batch.image_ids))
        return SimpleNamespace(of=self, image_sizes=[(8, 8)])

    def image_pass_like(self, images, share_frozen):
        self.calls.append(("image_pass_like", images.of is not self, share_frozen, torch.is_grad_enabled()))
        return SimpleNamespace(of=self, image_sizes=[(8, 8)])

    def region_pass(self, images, boxes=None):
        self.calls.append(("region_pass", boxes, torch.is_grad_enabled()))
        empty = torch.zeros(1, 1) * self.weight
        boxes = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        return RegionOutputs(empty, empty, empty, empty, boxes, torch.zeros(1, dtype=torch.long))

    def losses(self, images, regions, skip):
        return {name: self.weight * value for name, value in {"a": 1.0, "b": 2.0}.items() if name not in skip}


class Extra(Method):
    """Adds one term, and replaces b by a term of the teacher's regions."""

    replaces = ("b",)
    needs_teacher = True

    def losses(self, step):
        if step.teacher is None:
            return {"extra": torch.tensor(1.0)}
        return {"extra": torch.tensor(1.0), "b": step.teacher.regions.logits.sum() + 5}


def learner(task=SECOND, methods=(), teacher=True) -> Learner:
    student = FakeDetector()
    return Learner(student, freeze_copy(FakeDetector()) if teacher else None, methods, task)


def test_without_methods_the_losses_are_the_detectors():
    assert learner(teacher=False)(BATCH) == {"a": 2.0, "b": 4.0}


def test_sealed_batch_is_opened():
    assert learner(teacher=False)(Sealed(BATCH)) == learner(teacher=False)(BATCH)


def test_method_adds_and_replaces():
    losses = learner(methods=[Extra({})])(BATCH)
    assert losses == {"a": 2.0, "extra": 1.0, "b": 5.0}


def test_nothing_is_replaced_in_the_first_task():
    assert learner(FIRST, [Extra({})], teacher=False)(BATCH) == {"a": 2.0, "b": 4.0, "extra": 1.0}


def test_loss_given_twice_is_refused():
    with pytest.raises(MethodError, match="'extra', which is there already"):
        learner(methods=[Extra({}), type("Second", (Extra,), {"replaces": ()})({})])(BATCH)


def test_teacher_sees_the_students_images_and_boxes_without_gradients():
    model = learner(methods=[Extra({})])
    model(BATCH)
    image, regions = model.teacher.calls
    assert image == ("image_pass_like", True, True, False)
    assert regions[0] == "region_pass"
    assert [boxes.tolist() for boxes in regions[1]] == [[[0.0, 1.0, 2.0, 3.0]]]
    assert regions[2] is False


def test_a_teacher_looks_only_as_far_as_a_method_asks():
    class Features(Method):
        def losses(self, step):
            return {"images": step.teacher.images}

    model = learner()
    model(BATCH)
    assert model.teacher.calls == []
    model = learner(methods=[Features({})])
    model(BATCH)
    assert [call[0] for call in model.teacher.calls] == ["image_pass_like"]


def test_teacher_is_no_part_of_the_module():
    model = learner()
    assert {name.split(".")[0] for name in model.state_dict()} == {"student"}
    model.train()
    assert not model.teacher.training
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_batch_goes_through_every_method_in_order():
    class Rename(Method):
        def transform_batch(self, batch):
            return Batch(batch.images, None, [f"{batch.image_ids[0]} {self.cfg}"])

    model = learner(methods=[Rename("first"), Rename("second")], teacher=False)
    model(BATCH)
    assert model.student.calls[0] == ("image_pass", ["image first second"])


def test_finite_losses_pass():
    check_losses({"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_loss_that_is_not_finite_names_all(value):
    with pytest.raises(DivergenceError, match=r"iteration 3: .*a 1, b (nan|inf|-inf).*SOLVER.BASE_LR"):
        check_losses({"a": torch.tensor(1.0), "b": torch.tensor(value)}, 3)


class Watcher(Method):
    """Undoes half of every update."""

    @contextmanager
    def around_update(self, parameters):
        before = {name: value.detach().clone() for name, value in parameters.items()}
        yield
        with torch.no_grad():
            for name, value in parameters.items():
                value.lerp_(before[name], 0.5)


def test_methods_surround_the_update_in_order_and_see_the_trained_parameters_only():
    one = learner(methods=[Watcher(None), Watcher(None)])
    one.student.norm.requires_grad_(False)
    with one.around_update(), torch.no_grad():
        one.student.weight.add_(4.0)
        one.student.norm.weight.add_(4.0)
    assert one.student.weight.item() == 3.0  # 2 + 4 / 2 / 2
    assert one.student.norm.weight.item() == 5.0


def test_a_second_teacher_looks_at_the_students_boxes_without_gradients():
    class Second(Method):
        """Asks another detector."""

        def losses(self, step):
            assert not step.look(other).regions.logits.requires_grad
            return {}

    other = FakeDetector()
    learner(methods=[Second(None)])(BATCH)
    assert [call[0] for call in other.calls] == ["image_pass_like", "region_pass"]
    assert other.calls[1][1][0].tolist() == [[0.0, 1.0, 2.0, 3.0]]


class Relabels(Method):
    """Takes every region out of the base losses, in any task."""

    def relabel(self, images, regions):
        self.seen = images.of, regions.boxes.tolist()
        regions.labels = torch.full((1,), IGNORED)


@pytest.mark.parametrize("task", [FIRST, SECOND], ids=["first", "second"])
def test_methods_relabel_before_the_base_losses(task, monkeypatch):
    labels = []
    monkeypatch.setattr(FakeDetector, "losses", lambda self, images, regions, skip: labels.append(regions.labels) or {})
    method = Relabels({})
    model = learner(task, [method], teacher=False)
    model(BATCH)
    assert method.seen == (model.student, [[0.0, 1.0, 2.0, 3.0]])
    assert [of_step.tolist() for of_step in labels] == [[IGNORED]]
