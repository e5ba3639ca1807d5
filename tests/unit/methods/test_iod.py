"""iOD: what moves in which step, what is stored of the old classes, and what the losses are scaled by."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config, tiny_detector
from torch import nn

from incdet.backends.base import BASE_LOSSES
from incdet.config import get_cfg
from incdet.engine.learner import Learner, freeze_copy
from incdet.errors import ConfigError, MethodError
from incdet.methods import build_methods
from incdet.methods.iod import FILE, Iod, warp_layer
from incdet.optim import build_optimizer
from incdet.replay.features import FeatureStore
from incdet.replay.memory import memory_size

DISTILLED = ("loss_iod_cls", "loss_iod_box", "loss_iod_feature")
TEXTS = ("a", "bc", "ad", "cd", "b", "cb", "d", "dc")


@pytest.fixture(params=[("fpn", "torchvision")])
def world(request, tmp_path):
    neck, backend = request.param
    return World(tmp_path, tiny_config(neck, "BACKEND", backend), TEXTS)


HEADS = [
    pytest.param((neck, backend), id=f"{backend}-{neck}", marks=marks)
    for backend, marks in (("torchvision", ()), ("detectron2", pytest.mark.detectron2))
    for neck in ("fpn", "c4")
]
on_every_head = pytest.mark.parametrize("world", HEADS, indirect=True)


def method(world: World, **changes) -> Iod:
    node = world.cfg.METHOD.IOD.clone()
    node.update({"GAMMA": 2, "FEATURES_PER_CLASS": 4, "IMAGES_PER_CLASS": 2, "FINETUNE_ITER": 2} | changes)
    return Iod(node)


class Lesson:
    """The second task of one method, with the optimiser that the loop would build."""

    def __init__(self, world: World, iod: Iod) -> None:
        self.world, self.iod = world, iod
        self.learner, self.view = world.begin_second([iod])
        self.student = self.learner.student
        self.warp = list(warp_layer(self.student.box_head).parameters())
        self.context = iod._context
        self.optimizer = build_optimizer(world.cfg.SOLVER, self.student)
        for group in self.optimizer.param_groups:
            group.update(lr=0.01, weight_decay=0.1)

    def step(self, iteration: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(iteration)
        losses = self.learner(self.world.batch(self.view, iteration))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        with self.learner.around_update():
            self.optimizer.step()
        return losses

    def bits(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.student.named_parameters()}

    def moved(self, before: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, value in self.student.named_parameters() if not torch.equal(value, before[name])}

    @property
    def warp_names(self) -> set[str]:
        return {name for name, value in self.student.named_parameters() if any(value is p for p in self.warp)}


def test_the_warp_layer_is_the_last_one_with_weights():
    assert warp_layer(nn.Sequential(nn.Linear(1, 2), nn.Conv2d(1, 3, 1), nn.ReLU())).out_channels == 3
    head = tiny_detector(tiny_config("c4", "MODEL.BACKBONE.NAME", "resnet50")).box_head
    assert warp_layer(head) is head.get_submodule("2.conv3")  # iOD's roi_heads.res5.2.conv3
    head = tiny_detector(tiny_config("fpn")).box_head
    assert warp_layer(head) is head.fc7


# ---------------------------------------------------------------------- paper


@on_every_head
def test_the_warp_layer_keeps_its_bits_in_task_steps_and_alone_moves_in_warp_steps(world):
    lesson = Lesson(world, method(world))
    trained = {id(p) for group in lesson.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in trained for p in lesson.warp)
    before = lesson.bits()
    lesson.step(0)
    assert lesson.moved(before)
    assert lesson.moved(before).isdisjoint(lesson.warp_names)
    before, task_step_alone = lesson.bits(), copy.deepcopy(lesson)
    task_step_alone.iod._steps = 10
    task_step_alone.step(1)
    lesson.step(1)
    assert lesson.moved(before) >= lesson.warp_names
    assert lesson.moved(task_step_alone.bits()) == lesson.warp_names
    assert not any(p.requires_grad for p in lesson.warp)


@on_every_head
def test_a_warp_step_is_nu_times_the_gradient_of_the_box_heads_losses_on_the_store(world):
    lesson = Lesson(world, method(world, NU=0.5))
    before = [p.detach().clone() for p in lesson.warp]
    reference = copy.deepcopy(lesson.student).eval().requires_grad_(True)
    stored = {
        name: part.float() if part.is_floating_point() else part
        for name, part in lesson.iod._store.state_dict().items()
    }
    logits, deltas = reference.predictor(reference.box_features(stored["pooled"]))
    loss = torch.nn.functional.cross_entropy(logits, stored["labels"])
    own = deltas[torch.arange(len(deltas)), stored["labels"]]
    beta = world.cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA
    smooth = torch.nn.functional.smooth_l1_loss(own, stored["delta_targets"], beta=beta, reduction="sum")
    (loss + smooth / len(deltas)).backward()
    lesson.iod._warp_step(lesson.warp)
    for p, was, twin in zip(lesson.warp, before, warp_layer(reference.box_head).parameters(), strict=True):
        torch.testing.assert_close(p.detach(), was - 0.5 * twin.grad)


@on_every_head
def test_warp_steps_lower_the_loss_of_the_stored_features_and_leave_norms_alone(world):
    lesson = Lesson(world, method(world, NU=0.005))
    buffers = {name: value.clone() for name, value in lesson.student.named_buffers()}
    losses = [lesson.iod._loss_of_features().item()]
    for _ in range(5):
        lesson.iod._warp_step(lesson.warp)
        losses.append(lesson.iod._loss_of_features().item())
    assert losses == sorted(losses, reverse=True)
    assert all(torch.equal(value, buffers[name]) for name, value in lesson.student.named_buffers())
    assert lesson.student.training


def test_several_processes_step_by_their_mean_gradient(world):
    lesson = Lesson(world, method(world))
    before = [p.detach().clone() for p in lesson.warp]
    object.__setattr__(lesson.context, "average", lambda values: torch.ones_like(values))
    lesson.iod._warp_step(lesson.warp)
    for p, was in zip(lesson.warp, before, strict=True):
        torch.testing.assert_close(p.detach(), was - lesson.iod.cfg.NU)


def test_a_process_that_has_stored_nothing_still_takes_part(world):
    lesson = Lesson(world, method(world))
    lesson.iod._store = FeatureStore(1)
    asked = []
    object.__setattr__(lesson.context, "average", lambda values: asked.append(values) or values)
    before = lesson.bits()
    lesson.iod._warp_step(lesson.warp)
    assert len(asked) == len(lesson.warp)
    assert not lesson.moved(before)


def test_old_classes_come_from_the_first_task_and_new_ones_join_in_training(world):
    lesson = Lesson(world, method(world))
    assert set(lesson.iod._store.regions().labels.tolist()) == {0, 1}
    for iteration in range(3):
        lesson.step(iteration)
    assert set(lesson.iod._store.regions().labels.tolist()) == {0, 1, 2, 3}
    lesson.iod.refine(lesson.context)
    lesson.iod.end_task(lesson.context)
    kept = FeatureStore(4)
    kept.load(world.folder / "memory" / FILE, 4)
    assert set(kept.regions().labels.tolist()) == {0, 1, 2, 3}
    lesson.iod.end_task(lesson.context)  # a second life may end the task again
    again = FeatureStore(4)
    again.load(world.folder / "memory" / FILE, 4)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in kept.state_dict().items())
    path = world.folder / "memory" / FILE
    assert memory_size(world.folder / "memory")["bytes"] > path.stat().st_size > 0


def test_only_one_process_writes(world):
    method(world).end_task(world.context(FIRST, is_main=False))
    assert not (world.folder / "memory").exists()


def test_what_goes_from_step_to_step_is_kept_for_a_second_life(world):
    first = Lesson(world, method(world))
    first.step(0)
    second = method(world)
    second.begin_task(first.context)
    second.load_state_dict(copy.deepcopy(first.iod.state_dict()))
    assert second._steps == 1
    expected, found = first.iod._store.state_dict(), second._store.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


# ---------------------------------------------------------------------- release


@on_every_head
def test_release_moves_everything_in_a_warp_step_and_the_warp_layer_in_every_step(world):
    lesson = Lesson(world, method(world, VARIANT="release"))
    before = lesson.bits()
    lesson.step(0)
    assert lesson.moved(before) >= {name for name in lesson.warp_names if name.endswith("weight")}
    for p, name in ((p, name) for name, p in lesson.student.named_parameters() if name in lesson.warp_names):
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.01 * 0.1))  # decay alone: rate times decay
    before = lesson.bits()
    lesson.iod._warp_step([p for p in lesson.student.parameters() if p.requires_grad])
    assert lesson.moved(before) > lesson.warp_names
    assert any(name.startswith("backbone") for name in lesson.moved(before))
    assert not (world.folder / "memory" / FILE).exists()


def test_release_keeps_the_newest_image_of_the_last_class(world):
    iod = method(world, VARIANT="release")
    lesson = Lesson(world, iod)
    for iteration in range(4):
        lesson.step(iteration)
    assert iod._newest["label"] == 3
    assert 3 in iod._newest["target"]["labels"]
    assert iod._newest["image"].shape[0] == 3
    other = method(world, VARIANT="release")
    other.load_state_dict(copy.deepcopy(iod.state_dict()))
    assert torch.equal(other._newest["image"], iod._newest["image"])


def test_release_without_an_image_takes_no_step(world):
    lesson = Lesson(world, method(world, VARIANT="release"))
    before = lesson.bits()
    lesson.iod._warp_step([p for p in lesson.student.parameters() if p.requires_grad])
    assert not lesson.moved(before)


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("variant", "scales"),
    [("paper", (0.7, 0.7, 0.7, 0.7)), ("release", (1, 1, 0.7, 0.7))],
)
def test_detection_weighs_the_rest_of_alpha(world, variant, scales):
    found, plain = {}, {}
    for losses, methods in ((found, [method(world, VARIANT=variant, ALPHA=0.3)]), (plain, [])):
        student = tiny_detector(world.cfg, SECOND.num_seen).eval()
        for one in methods:
            one.begin_task(world.context(SECOND, student, freeze_copy(world.first)))
        torch.manual_seed(0)
        learner = Learner(student, freeze_copy(world.first) if methods else None, methods, SECOND)
        losses |= learner(world.batch(world.context(SECOND).view))
    assert found.keys() == {*BASE_LOSSES, *DISTILLED}
    for name, scale in zip(BASE_LOSSES, scales, strict=True):
        torch.testing.assert_close(found[name], scale * plain[name])


def test_distillation_weighs_alpha_but_for_the_releases_features(world):
    values = {}
    for variant in ("paper", "release"):
        for alpha in (0.2, 0.4):
            iod = method(world, VARIANT=variant, ALPHA=alpha)
            student = tiny_detector(world.cfg, SECOND.num_seen, seed=3).eval()
            iod.begin_task(world.context(SECOND, student, freeze_copy(world.first)))
            torch.manual_seed(0)
            losses = Learner(student, freeze_copy(world.first), [iod], SECOND)(world.batch(world.context(SECOND).view))
            values[variant, alpha] = [losses[name].item() for name in DISTILLED]
    assert all(value > 0 for value in values["paper", 0.2])
    assert values["paper", 0.4] == pytest.approx([2 * value for value in values["paper", 0.2]])
    cls, box, feature = values["release", 0.2]
    assert values["release", 0.4] == pytest.approx([2 * cls, 2 * box, feature])


def test_a_student_that_has_not_changed_pays_nothing(world):
    iod, student = method(world), copy.deepcopy(world.first).eval()
    student.expand_classes(SECOND.num_new)
    iod.begin_task(world.context(SECOND, student, freeze_copy(world.first)))
    losses = Learner(student, freeze_copy(world.first), [iod], SECOND)(world.batch(world.context(SECOND).view))
    assert [losses[name].item() for name in DISTILLED] == pytest.approx([0, 0, 0], abs=1e-6)


# ---------------------------------------------------------------------- the task's ends


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_the_last_stage_trains_everything_on_all_seen_classes_at_a_fixed_rate(world, variant):
    lesson = Lesson(world, method(world, VARIANT=variant, FINETUNE_ITER=3, FINETUNE_LR=0.02))
    assert lesson.view.images == lesson.context.view.images  # the memory is not mixed into the task
    stages = []
    object.__setattr__(lesson.context, "train", lambda *stage: stages.append(stage))
    lesson.iod.refine(lesson.context)
    ((student, view, name, solver, methods),) = stages
    assert (student, name, methods) == (lesson.student, "finetune", ())
    assert solver == {
        "MAX_ITER": 3, "BASE_LR": 0.02, "WARMUP_ITERS": 0, "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": ()
    }  # fmt: skip
    assert {label for image in view.images for label in image.labels.tolist()} == {0, 1, 2, 3}
    assert all(set(image.labels.tolist()) <= image.labelled for image in view.images)
    assert len(view.images) <= 4 * 2
    assert all(p.requires_grad for p in lesson.warp)


def test_no_iterations_mean_no_last_stage(world):
    lesson = Lesson(world, method(world, FINETUNE_ITER=0))
    object.__setattr__(lesson.context, "train", None)
    lesson.iod.refine(lesson.context)
    assert all(p.requires_grad for p in lesson.warp)


def test_the_first_task_is_a_plain_one(world):
    iod = method(world)
    learner, view = world.begin_first([iod])
    losses = learner(world.batch(view))
    assert losses.keys() == set(BASE_LOSSES)
    before = [p.clone() for p in learner.parameters()]
    with learner.around_update():
        pass
    with learner.around_update():
        pass
    assert all(torch.equal(p, was) for p, was in zip(learner.parameters(), before, strict=True))
    context = world.context(FIRST)
    object.__setattr__(context, "train", None)
    iod.refine(context)


def test_its_memory_is_replays_so_they_exclude_each_other():
    cfg = get_cfg()
    cfg.METHODS = ("replay", "iod")
    with pytest.raises(MethodError, match="iod contains replay already"):
        build_methods(cfg)


@pytest.mark.parametrize("key", ["VARIANT", "SELECTION"])
def test_an_unknown_value_names_its_key(world, key):
    with pytest.raises(ConfigError, match=rf"METHOD\.IOD\.{key}: expected .*got 'best'"):
        method(world, **{key: "best"})
