"""Mnemonics: what is stored after a task, which pixels change, and that a killed task ends as an unbroken one."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config
from torch.nn.functional import normalize

from incdet.data.images import read_image
from incdet.errors import ConfigError, MethodError
from incdet.methods import build_methods
from incdet.methods.mnemonics import DRAFT, Mnemonics
from incdet.replay.memory import Exemplar, load_memory
from incdet.replay.nearest_mean import load_means

SMALL = (
    "INPUT.MIN_SIZE_TRAIN",
    (8,),
    "INPUT.MIN_SIZE_TEST",
    8,
    "MODEL.BACKBONE.NAME",
    "mlp",
    "MODEL.BACKBONE.WIDTH",
    8,
)
KEYS = ("TASK", "classification", "TASKS.SPLIT", "2+2", "SOLVER.WARMUP_ITERS", 0, *SMALL)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config("fpn", *KEYS), "abcd" * 4)


def method(world: World, **changes) -> Mnemonics:
    node = world.cfg.METHOD.MNEMONICS.clone()
    few = {"EPOCHS": 2, "HALVE_EVERY": 1, "PIXEL_LR": 0.02, "IMAGES_PER_CLASS": 2, "FINETUNE_ITER": 2}
    node.update(few | changes)
    return Mnemonics(node)


def second(world: World, **changes):
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    return world.context(SECOND, student, **changes)


def stored(world: World, folder: Path | None = None) -> dict[str, Exemplar]:
    records = {record.image_id: record for record in world.dataset.images}
    return {e.image.record.image_id: e for e in load_memory(folder or world.folder / "memory", records)}


def pixels(world: World) -> dict[str, torch.Tensor]:
    return {name: read_image(e.image.record.path) for name, e in stored(world).items()}


def originals(world: World) -> dict[str, torch.Tensor]:
    return {record.image_id: read_image(record.path) for record in world.dataset.images}


def files(world: World) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (world.folder / "memory").rglob("*") if p.is_file()}


def changed(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, image in now.items() if not torch.equal(image, before[name])}


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_the_first_task_stores_learned_pixels_and_leaves_the_model_alone(world, variant):
    mnemonics, context = method(world, VARIANT=variant), world.context(FIRST)
    before = copy.deepcopy(world.first.state_dict())
    mnemonics.refine(context)
    mnemonics.end_task(context)
    found = pixels(world)
    assert sorted(e.kept_for for e in stored(world).values()) == [0, 0, 1, 1]
    assert changed(found, originals(world)) == set(found)
    assert all(torch.equal(value, before[name]) for name, value in world.first.state_dict().items())
    assert mnemonics.report()["mnemonics"]["levels_new"] > 0
    assert mnemonics.report()["mnemonics"]["levels_old"] == 0
    assert not (context.task_folder / DRAFT).exists()


def test_a_step_of_no_length_stores_the_images_themselves(world):
    method(world, PIXEL_LR=0.0).end_task(world.context(FIRST))
    assert changed(pixels(world), originals(world)) == set()
    assert len(pixels(world)) == 4


@pytest.mark.parametrize(("variant", "moved"), [("paper", {0, 1, 2, 3}), ("release", {2, 3})])
def test_the_paper_adjusts_the_old_exemplars_too(world, variant, moved):
    mnemonics = method(world, VARIANT=variant)
    mnemonics.end_task(world.context(FIRST))
    before, context = originals(world) | pixels(world), second(world)
    mnemonics.refine(context)
    mnemonics.end_task(context)
    kept = stored(world)
    assert sorted(e.kept_for for e in kept.values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {kept[name].kept_for for name in changed(pixels(world), before)} == moved
    assert (mnemonics.report()["mnemonics"]["levels_old"] > 0) is (variant == "paper")


def test_a_class_with_one_exemplar_has_no_other_half(world):
    mnemonics = method(world, IMAGES_PER_CLASS=1)
    mnemonics.end_task(world.context(FIRST))
    before, context = originals(world) | pixels(world), second(world)
    mnemonics.refine(context)
    mnemonics.end_task(context)
    assert {stored(world)[name].kept_for for name in changed(pixels(world), before)} == {2, 3}


def test_read_by_the_nearest_mean_the_means_are_those_of_the_learned_pixels(world):
    context = world.context(FIRST)
    method(world, READING="nearest_mean", IMAGES_PER_CLASS=1).end_task(context)
    images = [exemplar.image for exemplar in sorted(stored(world).values(), key=lambda e: e.kept_for)]
    features = torch.cat(context.features(context.student, images, "test"))
    torch.testing.assert_close(load_means(context.task_folder), normalize(features, dim=1))


# ---------------------------------------------------------------------- fine-tuning


def test_the_model_is_fine_tuned_on_the_exemplars_of_all_seen_classes(world):
    mnemonics = method(world, FINETUNE_ITER=7, FINETUNE_LR=0.02)
    mnemonics.end_task(world.context(FIRST))
    stages = []
    context = second(world, train=lambda *stage: stages.append(stage))
    mnemonics.refine(context)
    ((student, view, name, solver, methods),) = stages
    assert (student, name, methods) == (context.student, "finetune", ())
    assert solver == {"MAX_ITER": 7, "BASE_LR": 0.02, "WARMUP_ITERS": 0}
    assert sorted(image.labels.item() for image in view.images) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(image.record.path.is_relative_to(context.task_folder / DRAFT) for image in view.images)


@pytest.mark.parametrize("changes", [{"VARIANT": "release"}, {"FINETUNE_ITER": 0}])
def test_there_is_no_fine_tuning_in_the_release_nor_without_iterations(world, changes):
    mnemonics = method(world, **changes)
    mnemonics.end_task(world.context(FIRST))
    stages = []
    mnemonics.refine(second(world, train=lambda *stage: stages.append(stage)))
    assert stages == []


# ---------------------------------------------------------------------- killed and resumed


def test_the_memory_is_the_old_one_until_the_model_is_kept(world):
    mnemonics = method(world)
    mnemonics.end_task(world.context(FIRST))
    before, context = files(world), second(world)
    student = copy.deepcopy(context.student.state_dict())
    mnemonics.refine(context)
    assert files(world) == before
    whole = {e: read_image(x.image.record.path) for e, x in stored(world, context.task_folder / DRAFT).items()}
    (context.task_folder / DRAFT / "memory.json").unlink()  # killed before the draft was whole, or later
    shutil.rmtree(context.task_folder / "finetune")
    context.student.load_state_dict(student)
    again = method(world)
    again.refine(context)
    again.end_task(context)
    assert changed(pixels(world), whole) == set()
    assert pixels(world).keys() == whole.keys()
    assert again.report() == mnemonics.report()


def test_ending_a_task_again_changes_nothing(world, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    for context in (world.context(FIRST), second(world)):
        mnemonics = method(world)
        mnemonics.refine(context)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", stop)
            with pytest.raises(KeyboardInterrupt):
                mnemonics.end_task(context)
        once = files(world)
        method(world).end_task(context)
        assert files(world) == once
        method(world).end_task(context)
        assert files(world) == once
        assert not (context.task_folder / DRAFT).exists()


def test_only_one_process_writes_and_all_agree_on_the_pixels(world):
    averaged = []
    context = world.context(FIRST, is_main=False, average=lambda values: averaged.append(values) or values)
    method(world).end_task(context)
    assert not (world.folder / "memory").exists()
    assert not (context.task_folder / DRAFT).exists()
    assert len(averaged) == 4 + 1  # the images, and once to wait


# ---------------------------------------------------------------------- settings


def test_it_contains_replay(world):
    world.cfg.METHODS = ("replay", "mnemonics")
    with pytest.raises(MethodError, match="mnemonics contains replay already"):
        build_methods(world.cfg)


@pytest.mark.parametrize("key", ["VARIANT", "SELECTION"])
def test_an_unknown_value_names_its_key(world, key):
    with pytest.raises(ConfigError, match=rf"METHOD\.MNEMONICS\.{key}: expected .*got 'best'"):
        method(world, **{key: "best"})


@pytest.mark.parametrize("key", ["HALVE_EVERY", "INNER_STEPS", "INNER_IMAGES"])
def test_a_number_that_stands_for_nothing_is_refused(world, key):
    with pytest.raises(ConfigError, match=rf"METHOD\.MNEMONICS\.{key}: expected 1 or more, got 0"):
        method(world, **{key: 0})
