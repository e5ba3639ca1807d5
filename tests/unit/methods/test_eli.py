"""ELI as a method: what it fits, where it keeps it, and what it does at prediction."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, random_images, tiny_config

from incdet.align.files import load_chain
from incdet.backends.weights import save_model
from incdet.engine.learner import freeze_copy
from incdet.engine.slots import install_slots, load_predictor
from incdet.errors import CheckpointError, ConfigError
from incdet.methods.eli import FILE, Eli
from incdet.structures import Batch


def method(world: World, **changes) -> Eli:
    node = world.cfg.METHOD.ELI.clone()
    node.update({"ITERATIONS": 3, **changes})
    return Eli(node)


@pytest.fixture(params=["fpn", "c4"])
def world(request, tmp_path):
    return World(tmp_path, tiny_config(request.param))


@pytest.fixture
def drifted(world):
    """A student whose box head moved by a known amount: every region feature is 0.5 higher than the teacher's."""
    teacher = freeze_copy(world.first)
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    head = student.roi_heads.box_head
    plain = head.forward
    head.forward = lambda pooled: plain(pooled) + 0.5
    return student, teacher


def learn(world: World, eli: Eli, student, teacher):
    eli.end_task(world.context(FIRST))
    context = world.context(SECOND, student, teacher)
    eli.end_task(context)
    return context


def test_a_mean_shift_takes_back_what_the_head_added(world, drifted):
    student, teacher = drifted
    context = learn(world, method(world, ALIGNER="mean_shift", GATE="all"), student, teacher)
    (link,) = load_chain(context.task_folder / FILE)
    torch.testing.assert_close(link.aligner.shift, torch.full_like(link.aligner.shift, -0.5), rtol=0, atol=1e-4)
    assert link.num_old == FIRST.num_seen


@pytest.mark.parametrize("aligner", ["mean_shift", "ridge"])
def test_aligned_features_are_the_teachers(world, drifted, aligner):
    student, teacher = drifted
    eli = method(world, ALIGNER=aligner, GATE="all")
    context = learn(world, eli, student, teacher)
    install_slots(student, [eli], context.task_folder)
    images = random_images(2)
    with torch.no_grad(), student.evaluating():
        outputs = student.image_pass(Batch(images, None))
        aligned = student.region_pass(outputs)
        seen = teacher.region_pass(teacher.image_pass_like(outputs), aligned.boxes_per_image(2))
    torch.testing.assert_close(aligned.features, seen.features, rtol=1e-3, atol=1e-3)


def test_the_paired_energy_starts_from_its_ridge_and_takes_its_iterations(world, drifted):
    context = learn(world, method(world, ALIGNER="energy_paired", ITERATIONS=2, RIDGE_STRENGTH=0.5), *drifted)
    (link,) = load_chain(context.task_folder / FILE)
    assert link.aligner.kind == "energy_paired"
    assert (link.aligner.provenance["iterations"], link.aligner.provenance["strength"]) == (2, 0.5)


def test_the_first_task_leaves_an_empty_chain_that_moves_nothing(world):
    eli = method(world)
    context = world.context(FIRST)
    eli.end_task(context)
    assert load_chain(context.task_folder / FILE) == []
    images = random_images(1)
    (before,) = world.first.predict(images)
    install_slots(world.first, [eli], context.task_folder)
    (after,) = world.first.predict(images)
    assert torch.equal(before.scores, after.scores)
    assert eli.report() == {}


def test_a_third_task_adds_a_link(tmp_path):
    world = World(tmp_path, tiny_config(), split="1x4")
    eli = method(world, ALIGNER="mean_shift")
    eli.end_task(world.context(world.stream[0]))
    previous = world.first
    for task in world.stream.tasks[1:3]:
        student = copy.deepcopy(previous)
        student.expand_classes(1)
        context = world.context(task, student, freeze_copy(previous))
        eli.end_task(context)
        previous = student
    assert [link.num_old for link in load_chain(context.task_folder / FILE)] == [1, 2]


def test_installing_it_leaves_the_detectors_weights_alone(world, drifted):
    student, teacher = drifted
    eli = method(world)
    keys = set(student.state_dict())
    context = learn(world, eli, student, teacher)
    install_slots(student, [eli], context.task_folder)
    assert set(student.state_dict()) == keys


def test_a_saved_model_is_read_with_its_aligner_and_not_without(world, drifted):
    student, teacher = drifted
    cfg = world.cfg.clone()
    cfg.merge_from_list(["METHODS", "eli", "METHOD.ELI.ALIGNER", "mean_shift", "METHOD.ELI.GATE", "all"])
    context = learn(world, Eli(cfg.METHOD.ELI), student, teacher)
    path = context.task_folder / "model.safetensors"
    save_model(path, student.state_dict(), {"classes": '["a", "b", "c", "d"]', "config": cfg.dump()})
    detector, classes, _ = load_predictor(path)
    assert classes == ("a", "b", "c", "d")
    features = torch.zeros(2, detector.roi_heads.box_predictor.cls_score.in_features)
    aligned = detector.region_transform(features, detector.predictor)
    torch.testing.assert_close(aligned, features - 0.5, rtol=0, atol=1e-4)
    (context.task_folder / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"aligner\.safetensors cannot be read.*beside the model"):
        load_predictor(path)


def test_the_report_says_how_far_features_moved(world, drifted):
    eli = method(world)
    learn(world, eli, *drifted)
    report = eli.report()["alignment"]
    assert (report["aligner"], report["gate"]) == ("energy", "predicted_old")
    assert report["relative_drift"] > 0
    assert report["latents"] > len(world.dataset)  # objects and background


def test_the_settings_override_the_preset(world):
    eli = method(world, PRESET="toy_32", ITERATIONS=7, STEPS=2, STEP_SIZE=0.5)
    settings = eli._settings()
    assert (settings.iterations, settings.steps, settings.step_size, settings.ema) == (7, 2, 0.5, 0.99)


@pytest.mark.parametrize(("key", "value"), [("ALIGNER", "affine"), ("GATE", "oracle"), ("PRESET", "best")])
def test_an_unknown_setting_is_refused_before_anything_is_learned(tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"expected one of .*{value!r}"):
        method(World(tmp_path, tiny_config()), **{key: value})
