"""iCaRL: sigmoids from the first task on, and images read by the nearest mean of the stored ones."""

import shutil

import pytest
import torch
from tiny import FIRST, SECOND, World, random_images, tiny_config
from torch.nn.functional import cosine_similarity

from incdet.engine.slots import install_slots
from incdet.errors import CheckpointError, ConfigError, MethodError
from incdet.losses.icarl import distilled_cross_entropy
from incdet.methods import build_methods
from incdet.methods.base import Method
from incdet.replay.nearest_mean import FILE, load_means
from incdet.structures import Batch

TEXTS = ("a", "b", "a", "c", "d", "a", "b", "c")
CLASSIFICATION = ("TASK", "classification", "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config("fpn", *CLASSIFICATION), TEXTS)


def build(*overrides) -> list[Method]:
    return build_methods(tiny_config("fpn", *CLASSIFICATION, *overrides))


def icarl(*overrides) -> Method:
    return build("METHODS", ("icarl",), *overrides)[0]


def test_the_first_task_is_taught_by_sigmoids_too(world):
    learner, view = world.begin_first([icarl()])
    batch = world.batch(view)
    with learner.student.evaluating():
        losses = learner(batch)
        logits = learner.student.region_pass(learner.student.image_pass(batch)).logits
    labels = torch.cat([target.labels for target in batch.targets])
    assert losses.keys() == {"loss_cls"}
    torch.testing.assert_close(losses["loss_cls"], distilled_cross_entropy(logits, labels, torch.ones(4), None))


def test_old_classes_follow_the_teacher_even_where_their_own_images_are_seen(world):
    learner, view = world.begin_second([icarl()])
    batch = world.batch(view)
    labels = torch.cat([target.labels for target in batch.targets])
    with learner.student.evaluating():
        losses = learner(batch)
        images = learner.student.image_pass(batch)
        logits = learner.student.region_pass(images).logits
        old = learner.teacher.region_pass(learner.teacher.image_pass_like(images)).logits
    expected = distilled_cross_entropy(logits, labels, torch.ones(4), old)
    torch.testing.assert_close(losses, {"loss_cls": expected})
    assert {image.source for image in view.images} == {"task", "memory"}
    assert view.memory_share is None


def test_an_image_is_of_the_class_whose_stored_images_have_the_nearest_mean(world):
    method = icarl("METHOD.ICARL.BUDGET", 2)  # one image of each class
    method.end_task(world.context(FIRST))
    stored = {record.image_id: record for record in world.dataset.images}
    exemplars = method._load(world.context(FIRST))
    view = world.context(FIRST).view
    images = [next(i for i in view.images if i.record.image_id == e.image.record.image_id) for e in exemplars]
    rows = torch.cat(world.context(FIRST).features(world.first, images, "")), random_images(5)
    assert len(stored) > len(exemplars) == 2

    install_slots(world.first, [method], world.folder / "task_1")
    outputs = world.first.eval().image_pass(Batch(rows[1], None))
    features = world.first.region_pass(outputs).features
    expected = cosine_similarity(features[:, None], rows[0][None], dim=2).argmax(dim=1)
    assert torch.equal(world.first.read(outputs)[0].argmax(dim=1), expected)
    assert [found.labels[0].item() for found in world.first.predict(rows[1])] == expected.tolist()
    assert method.report() == {"reading": "nearest_mean"}


def test_the_means_of_all_seen_classes_are_the_current_models(world):
    method = icarl()
    world.begin_second([method])
    before = load_means(world.folder / "task_1")
    student = world.first
    student.expand_classes(2)
    with torch.no_grad():
        student.backbone.body["conv1"].weight.mul_(-1)  # features move
    method.end_task(world.context(SECOND, student))
    after = load_means(world.folder / "task_2")
    assert before.shape[0] == 2
    assert after.shape[0] == 4
    assert not torch.allclose(after[:2], before, atol=1e-3)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(4))


def test_a_copied_folder_reads_the_same_and_one_without_the_means_is_refused(world, tmp_path):
    method = icarl()
    method.end_task(world.context(FIRST))
    shutil.copytree(world.folder / "task_1", tmp_path / "copy")
    readings = [icarl().read_out(folder) for folder in (world.folder / "task_1", tmp_path / "copy")]
    features = torch.randn(3, world.first.classifier.in_features)
    assert torch.equal(*(reading(features, world.first.predictor) for reading in readings))
    (tmp_path / "copy" / FILE).unlink()
    with pytest.raises(CheckpointError, match=FILE):
        icarl().read_out(tmp_path / "copy")


def test_by_default_replay_is_read_by_the_head_and_keeps_no_means(world):
    (replay,) = build("METHODS", ("replay",))
    replay.end_task(world.context(FIRST))
    assert replay.read_out(world.folder / "task_1") is None
    assert not (world.folder / "task_1" / FILE).exists()
    assert replay.report() == {}


# ---------------------------------------------------------------------- refused before anything runs


def test_another_reader_beside_the_nearest_mean_is_refused_and_beside_the_head_welcome():
    assert len(build("METHODS", ("replay", "eli"))) == 2
    assert len(build("METHODS", ("icarl", "eli"), "METHOD.ICARL.READING", "head")) == 2
    for names in (("icarl", "eli"), ("eli", "icarl")):
        with pytest.raises(MethodError, match=f"both {names[0]} and {names[1]} provide read_out"):
            build("METHODS", names)


@pytest.mark.parametrize(
    "overrides", [("TASK", "detection"), ("TASK", "classification", "MODEL.CLASSIFIER.MULTI_LABEL", True)]
)
def test_the_nearest_mean_is_for_images_of_one_class(overrides):
    with pytest.raises(ConfigError, match=r"METHOD\.REPLAY\.READING: nearest_mean .*Set it to head"):
        build("METHODS", ("replay",), "METHOD.REPLAY.READING", "nearest_mean", *overrides)


def test_an_unknown_reading_names_the_key():
    with pytest.raises(ConfigError, match=r"METHOD\.ICARL\.READING: expected one of head, nearest_mean, got 'tails'"):
        icarl("METHOD.ICARL.READING", "tails")
