"""Which detections become targets, of which stage, and what is measured of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config

from incdet.config import get_cfg
from incdet.errors import ConfigError
from incdet.files import read_json
from incdet.methods.pseudo_label import PseudoLabel
from incdet.structures import Detections

# Objects of photographs lie at (4 + 30 i, 4 + 8 i) and are 24 pixels wide and high.
FIRST_PLACE, SECOND_PLACE = [4.0, 4.0, 28.0, 28.0], [34.0, 12.0, 58.0, 36.0]
ELSEWHERE = [60.0, 30.0, 90.0, 60.0]


def detections(*rows) -> Detections:
    """Rows of (box, score, label)."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        torch.tensor(boxes).view(-1, 4), torch.tensor(scores).float(), torch.tensor(labels, dtype=torch.int64)
    )


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config(), texts=("ca", "dd", "bc"))


@pytest.fixture
def method():
    return PseudoLabel(get_cfg().METHOD.PSEUDO_LABEL)


def second_task(world: World, found: dict[str, Detections], calls: list | None = None, **changes):
    """The context of the second task, whose teacher finds ``found`` by image id and nothing elsewhere."""

    def detect(detector, images, description):
        if calls is not None:
            calls.append([image.record.image_id for image in images])
        return [found.get(image.record.image_id, detections()) for image in images]

    return world.context(SECOND, teacher=world.first, detect=detect, **changes)


def by_id(view) -> dict:
    return {image.record.image_id: image for image in view.images}


@pytest.mark.parametrize(
    ("score", "rpn", "roi"),
    [(0.95, True, True), (0.7, True, True), (0.69, True, False), (0.5, True, False), (0.49, False, False)],
)
def test_each_stage_takes_detections_from_its_own_threshold_on(world, method, score, rpn, roi):
    context = second_task(world, {"im0": detections((ELSEWHERE, score, 0))})
    image = by_id(method.training_data(context.view, context))["im0"]
    assert image.boxes.tolist() == [FIRST_PLACE, ELSEWHERE]
    assert image.labels.tolist() == [2, 0]
    assert image.weights.tolist() == [1, 1]
    assert image.use_rpn.tolist() == [True, rpn]
    assert image.use_roi.tolist() == [True, roi]
    assert image.labelled == {2, 3}


def test_a_detection_too_weak_to_be_ignored_leaves_no_trace(world, method):
    context = second_task(world, {"im0": detections((ELSEWHERE, 0.29, 0))})
    image = by_id(method.training_data(context.view, context))["im0"]
    assert image.boxes.tolist() == [FIRST_PLACE]


def test_a_detection_on_a_labelled_object_is_dropped(world, method):
    near = [4.0, 4.0, 28.0, 36.0]  # IoU 24 / 32 = 0.75
    far = [4.0, 4.0, 28.0, 40.0]  # IoU 24 / 36
    context = second_task(world, {"im0": detections((near, 0.9, 0), (far, 0.9, 1))})
    image = by_id(method.training_data(context.view, context))["im0"]
    assert image.boxes.tolist() == [FIRST_PLACE, far]
    assert image.labels.tolist() == [2, 1]


@pytest.mark.parametrize(("iou", "taught"), [(1.0, [0, 1, 0]), (0.8, [0, 1, 0]), (0.7, [1, 0])])
def test_one_object_gets_the_surest_class_alone(world, iou, taught):
    """A shift of 5 leaves 25 of 35 pixels in common, and one to the first place has nothing in common."""
    cfg = get_cfg()
    cfg.merge_from_list(["METHOD.PSEUDO_LABEL.ONE_OBJECT_IOU", iou])
    boxes = ([60.0, 30.0, 90.0, 60.0], [65.0, 30.0, 95.0, 60.0])
    found = detections((boxes[0], 0.8, 0), (boxes[1], 0.9, 1), ([1.0, 70.0, 20.0, 90.0], 0.75, 0))
    context = second_task(world, {"im0": found})
    image = by_id(PseudoLabel(cfg.METHOD.PSEUDO_LABEL).training_data(context.view, context))["im0"]
    assert [label for label, use in zip(image.labels, image.use_roi, strict=True) if use and label < 2] == taught


def test_detections_of_a_class_that_is_labelled_in_the_image_are_skipped(world, method):
    context = second_task(world, {"im2": detections((ELSEWHERE, 0.9, 0), ([60.0, 4.0, 80.0, 24.0], 0.9, 1))})
    stored = replace(by_id(context.view)["im2"], labelled=frozenset({0}), source="memory")
    view = replace(context.view, images=(stored,))
    (image,) = method.training_data(view, context).images
    assert image.labels.tolist() == [2, 1]


def test_dtypes_are_kept_and_the_view_itself_is_left_alone(world, method):
    context = second_task(world, {"im0": detections((ELSEWHERE, 0.9, 0))})
    before = by_id(context.view)["im0"]
    image = by_id(method.training_data(context.view, context))["im0"]
    for name in ("boxes", "labels", "weights", "use_rpn", "use_roi"):
        assert getattr(image, name).dtype == getattr(before, name).dtype
        assert len(getattr(image, name)) == 2
        assert len(getattr(before, name)) == 1


def test_images_without_detections_stay_as_they_were(world, method):
    context = second_task(world, {"im2": detections((ELSEWHERE, 0.9, 0))})
    images = by_id(method.training_data(context.view, context))
    assert [len(images[name].labels) for name in ("im0", "im1", "im2")] == [1, 2, 2]


def test_hidden_labels_never_reach_training(world, method):
    found = {"im0": detections((SECOND_PLACE, 0.9, 0))}
    context = second_task(world, found)
    hidden = [replace(r, boxes=r.boxes.copy(), labels=np.where(r.labels < 2, 1 - r.labels, r.labels)) for r in
              world.dataset.images]  # fmt: skip
    other = second_task(world, found, dataset=replace(world.dataset, images=tuple(hidden)))
    one, two = (method.training_data(c.view, c) for c in (context, other))
    for image, twin in zip(one.images, two.images, strict=True):
        np.testing.assert_array_equal(image.boxes, twin.boxes)
        np.testing.assert_array_equal(image.labels, twin.labels)


def test_the_first_task_has_no_teacher_and_changes_nothing(world, method):
    context = world.context(FIRST)
    assert method.training_data(context.view, context) is context.view
    assert method.report() == {}


def test_a_resumed_task_reads_what_it_began_with(world, method):
    calls = []
    context = second_task(world, {"im0": detections((ELSEWHERE, 0.123456789, 0), (SECOND_PLACE, 0.7, 1))}, calls)
    first = method.training_data(context.view, context)
    second = method.training_data(context.view, context)
    assert len(calls) == 1
    for image, again in zip(first.images, second.images, strict=True):
        np.testing.assert_array_equal(image.boxes, again.boxes)
        np.testing.assert_array_equal(image.use_roi, again.use_roi)
    entries = read_json(context.task_folder / "pseudo_labels.json", "pseudo-labels")
    assert [entry["category_id"] for entry in entries] == [1, 2]


def test_another_process_gets_the_same_and_writes_nothing(world, method):
    found = {"im0": detections((ELSEWHERE, 0.9, 0))}
    context = second_task(world, found, is_main=False)
    image = by_id(method.training_data(context.view, context))["im0"]
    assert not (context.task_folder / "pseudo_labels.json").exists()
    main = second_task(world, found)
    np.testing.assert_array_equal(image.boxes, by_id(method.training_data(main.view, main))["im0"].boxes)


def test_an_image_that_is_also_in_the_memory_gets_its_labels_in_both_places(world, method):
    """The same photograph may be new and remembered at once, with other classes labelled in each."""
    calls = []
    found = {
        "im0": detections((SECOND_PLACE, 0.9, 0)),
        "im1": detections((ELSEWHERE, 0.9, 1)),
        "im2": detections((FIRST_PLACE, 0.9, 1)),
    }
    context = second_task(world, found, calls)
    old = by_id(world.context(FIRST).view)["im0"]
    view = replace(context.view, images=(*context.view.images, replace(old, source="memory")))
    *fresh, stored = method.training_data(view, context).images
    assert calls == [["im0", "im1", "im2"]]
    assert [image.labels.tolist() for image in fresh] == [[2, 0], [3, 3, 1], [2, 1]]
    assert stored.labels.tolist() == [0]  # class 0 is labelled in it, so the detection of one says nothing new
    assert stored.labelled == {0, 1}


def test_precision_and_recall_are_of_sure_labels_on_the_tasks_own_images(world, method):
    found = {
        "im0": detections((SECOND_PLACE, 0.9, 0), (ELSEWHERE, 0.8, 0)),  # one right, one wrong
        "im2": detections((FIRST_PLACE, 0.6, 1)),  # right, but not sure enough for the second stage
    }
    context = second_task(world, found)
    old = by_id(world.context(FIRST).view)["im0"]
    view = replace(context.view, images=(*context.view.images, replace(old, source="memory")))
    method.training_data(view, context)
    assert method.report() == {
        "pseudo_labels": {
            "a": {"precision": 0.5, "recall": 1.0, "given": 2, "hidden": 1},
            "b": {"precision": None, "recall": 0.0, "given": 0, "hidden": 1},
        }
    }


# ---------------------------------------------------------------------- threshold rules


def with_rule(rule: str) -> PseudoLabel:
    node = get_cfg().METHOD.PSEUDO_LABEL.clone()
    node.THRESHOLDS = rule
    return PseudoLabel(node)


@pytest.mark.parametrize(("score", "taught"), [(0.7, True), (0.69, False), (0.35, False)])
def test_one_fixed_threshold_serves_both_stages_and_leaves_nothing_uncertain(world, score, taught):
    context = second_task(world, {"im0": detections((ELSEWHERE, score, 0))})
    method = with_rule("fixed")
    image = by_id(method.training_data(context.view, context))["im0"]
    assert image.labels.tolist() == [2, 0][: 1 + taught]
    assert image.use_rpn.tolist() == image.use_roi.tolist() == [True] * (1 + taught)
    assert "pseudo_label_thresholds" not in method.report()


def test_a_mixture_gives_every_class_a_threshold_of_its_own(world):
    """Class 0 has false detections around 0.2 and true ones around 0.8; of class 1 there are too few to tell."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0.2, 0.03, 60), rng.normal(0.8, 0.03, 60)])
    many = [(ELSEWHERE, float(score), 0) for score in scores]
    found = {"im0": detections(*many, (ELSEWHERE, 0.52, 0), (ELSEWHERE, 0.45, 0), (SECOND_PLACE, 0.69, 1))}
    context = second_task(world, found)
    method = with_rule("mixture")
    image = by_id(method.training_data(context.view, context))["im0"]
    thresholds = method.report()["pseudo_label_thresholds"]
    assert thresholds["a"] == pytest.approx(0.5, abs=0.02)
    assert thresholds["b"] == 0.7  # SCORE_ROI
    assert image.use_rpn.tolist() == image.use_roi.tolist() == [True] + [True] * 61 + [False] * 2
    assert image.labels.tolist() == [2] + [0] * 62 + [1]  # 0.45 and 0.69 are ignored, the false ones gone


def test_a_mixture_is_of_what_would_be_taught_in_the_tasks_own_images(world):
    """Neither detections on labelled objects nor those in stored images move a threshold."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0.2, 0.03, 60), rng.normal(0.8, 0.03, 60)])
    disturbing = [(FIRST_PLACE, float(score), 0) for score in rng.normal(0.9, 0.01, 200)]
    fair = [(ELSEWHERE, float(score), 0) for score in scores]
    thresholds = []
    for number, found in enumerate(({"im0": detections(*fair)}, {"im0": detections(*fair, *disturbing)})):
        context = second_task(world, found, task_folder=world.folder / f"run_{number}")
        context.task_folder.mkdir()
        method = with_rule("mixture")
        method.training_data(context.view, context)
        thresholds.append(method.report()["pseudo_label_thresholds"]["a"])
    assert thresholds[0] == thresholds[1]


def test_an_unknown_rule_is_refused():
    with pytest.raises(
        ConfigError, match=r"METHOD\.PSEUDO_LABEL\.THRESHOLDS: expected fixed, dual or mixture, got 'gm"
    ):
        with_rule("gmm")
