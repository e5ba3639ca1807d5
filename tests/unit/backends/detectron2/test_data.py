"""A task's data in Detectron2's loader: what is hidden stays hidden, and a batch is the one that incdet would draw."""

import copy
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from tiny import SECOND, STREAM, photographs, tiny_config

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils import comm

from incdet.backends.detectron2.data import ReplaySampler, TaskMapper, detection_dicts
from incdet.data.loader import BatchPlan, train_loader
from incdet.data.views import task_view
from incdet.errors import ConfigError, DataError

pytestmark = pytest.mark.detectron2
WIDTH, HEIGHT = 96, 64  # of the photographs


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    """The second task of a, b | c, d: five images of its own."""
    return task_view(photographs(tmp_path_factory.mktemp("images"), "c", "bd", "cd", "dac", "d", "ab"), STREAM, SECOND)


@pytest.fixture(scope="module")
def replayed(view):
    """Its images, three of which stand in for the memory as well; a quarter of each batch is to come from there."""
    stored = [replace(image, source="memory", labels=image.labels - 2) for image in view.images[:3]]
    return replace(view, images=(*view.images, *stored), memory_share=0.25)


@pytest.fixture
def image(view):
    """A dict with room for annotations, whose image exists."""
    return {**detection_dicts(view)[0], "annotations": []}


def annotation(label, box=(10, 10, 30, 30), **extras):
    return {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, **extras}


def mapper(*augmentations, is_train=True, **settings):
    return TaskMapper(is_train, augmentations=list(augmentations), image_format="BGR", **settings)


def labels(mapped):
    return mapped["instances"].gt_classes.tolist()


def test_dicts_hold_the_tasks_images_and_labels(view):
    dicts = detection_dicts(view)
    assert [entry["image_id"] for entry in dicts] == ["im0", "im1", "im2", "im3", "im4"]  # im5 has old classes only
    assert [[item["category_id"] for item in entry["annotations"]] for entry in dicts] == [
        [2],
        [3],
        [2, 3],
        [3, 2],
        [3],
    ]
    first = dicts[1]
    assert (first["width"], first["height"], first["source"]) == (WIDTH, HEIGHT, "task")
    assert first["file_name"] == str(view.images[1].record.path)
    assert first["annotations"] == [
        annotation(3, (34, 12, 58, 36), iscrowd=0, weight=1.0, use_rpn=True, use_roi=True)  # the second object of "bd"
    ]


def test_dicts_carry_weights_uses_and_source(view):
    changed = replace(
        view.images[2],
        source="memory",
        weights=np.array([0.25, 1], np.float32),
        use_rpn=np.array([False, False]),
        use_roi=np.array([True, False]),
    )
    (entry,) = detection_dicts(replace(view, images=(changed,)))
    assert entry["source"] == "memory"
    fields = ("weight", "use_rpn", "use_roi", "iscrowd")
    assert [[item[field] for field in fields] for item in entry["annotations"]] == [
        [0.25, False, True, 0],
        [1, False, False, 1],
    ]


def test_what_is_not_visible_never_reaches_the_instances(image):
    image["annotations"] = [annotation(label) for label in (0, 1, 2, 3, 4)]
    before = copy.deepcopy(image)
    mapped = mapper(visible=range(2, 4))(image)
    assert labels(mapped) == [2, 3]
    assert "annotations" not in mapped
    assert image == before


def test_hidden_boxes_are_not_left_among_the_ignored(image):
    image["annotations"] = [annotation(0, iscrowd=1), annotation(4, use_rpn=False, use_roi=False), annotation(2)]
    mapped = mapper(visible=range(2, 4))(image)
    assert labels(mapped) == [2]
    assert len(mapped["ignored_boxes"]) == 0


def test_a_memory_image_keeps_old_classes_but_no_later_ones(image):
    image |= {"source": "memory", "annotations": [annotation(label) for label in (0, 1, 3, 4)]}
    assert labels(mapper(visible=range(2, 4))(image)) == [0, 1, 3]


def test_none_hides_nothing(image):
    image["annotations"] = [annotation(0), annotation(4)]
    assert labels(mapper()(image)) == [0, 4]


def test_no_annotation_survives_evaluation(image):
    image["annotations"] = [annotation(2)]
    mapped = mapper(is_train=False, visible=range(2, 4))(image)
    assert not {"annotations", "instances", "ignored_boxes"} & mapped.keys()
    assert mapped["image"].shape == (3, HEIGHT, WIDTH)


def test_fields_stay_with_their_boxes_when_flipped_and_cropped(image):
    image["annotations"] = [
        annotation(2, (4, 4, 28, 28), weight=0.1),  # left of the crop, thus empty afterwards
        annotation(3, (60, 8, 80, 40), weight=0.2, use_rpn=False),
        annotation(2, (0, 50, 40, 60), weight=0.3),  # also outside
        annotation(3, (48, 10, 96, 30), weight=0.4, use_roi=False),
        annotation(2, (50, 20, 60, 30), use_rpn=False, use_roi=False),  # ignored
    ]
    crop = T.CropTransform(48, 0, 48, HEIGHT)  # the right half
    instances = (mapped := mapper(crop, T.RandomFlip(prob=1.0), visible=range(2, 4))(image))["instances"]
    # x becomes 48 - (x - 48): 60..80 is 16..36 and the whole half 0..48.
    assert instances.gt_boxes.tensor.tolist() == [[16, 8, 36, 40], [0, 10, 48, 30]]
    assert instances.gt_classes.tolist() == [3, 3]
    assert torch.equal(instances.gt_weights, torch.tensor([0.2, 0.4]))
    assert torch.equal(instances.gt_use_rpn, torch.tensor([False, True]))
    assert torch.equal(instances.gt_use_roi, torch.tensor([True, False]))
    assert mapped["ignored_boxes"].tensor.tolist() == [[36, 20, 46, 30]]


def test_an_image_without_visible_objects_has_empty_fields(image):
    image["annotations"] = [annotation(0)]
    instances = mapper(visible=range(2, 4))(image)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    dtypes = [getattr(instances, f"gt_{name}").dtype for name in ("classes", "weights", "use_rpn", "use_roi")]
    assert dtypes == [torch.int64, torch.float32, torch.bool, torch.bool]


def test_visible_comes_from_the_metadata_of_the_training_data():
    for name, visible in (("incdet_one", range(2, 4)), ("incdet_same", range(2, 4)), ("incdet_other", range(2))):
        MetadataCatalog.get(name).set(visible_labels=visible)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("incdet_one", "incdet_same")
    assert TaskMapper(cfg).visible == range(2, 4)
    assert TaskMapper(cfg, visible=range(4)).visible == range(4)
    assert TaskMapper(cfg, is_train=False).is_train is False
    assert len(TaskMapper(cfg).augmentations.augs) == len(DatasetMapper(cfg, is_train=True).augmentations.augs)
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    assert TaskMapper(cfg).visible is None
    cfg.DATASETS.TRAIN = ("incdet_one", "incdet_other")
    with pytest.raises(ConfigError, match="incdet_one, incdet_other"):
        TaskMapper(cfg)


def draws(sampler, count):
    return list(islice(sampler, count))


def test_every_batch_has_the_share_of_memory(replayed):
    drawn = draws(ReplaySampler(replayed, 8, seed=3), 8 * 20)
    stored = [replayed.images[index].source == "memory" for index in drawn]
    assert [sum(stored[start : start + 8]) for start in range(0, len(stored), 8)] == [2] * 20  # a quarter of 8


def test_batches_are_those_of_the_plan_and_of_the_engine(replayed):
    cfg = tiny_config("fpn", "SOLVER.IMS_PER_BATCH", 4, "SEED", 3)
    drawn = draws(ReplaySampler(replayed, 4, seed=3), 4 * 6)
    plan = BatchPlan(replayed, 4, 3)
    assert drawn == [index for iteration in range(6) for index, _ in plan.batch(iteration)]
    ids = [image_id for batch in train_loader(replayed, cfg, range(6)) for image_id in batch.image_ids]
    assert [replayed.images[index].record.image_id for index in drawn] == ids


def test_the_same_seed_draws_the_same_and_resuming_continues(replayed):
    drawn = draws(ReplaySampler(replayed, 4, seed=3), 40)
    assert draws(ReplaySampler(replayed, 4, seed=3), 40) == drawn
    assert draws(ReplaySampler(replayed, 4, seed=4), 40) != drawn
    assert draws(ReplaySampler(replayed, 4, seed=3, start=5), 20) == drawn[20:]


def test_processes_share_each_batch(replayed, monkeypatch):
    whole = draws(ReplaySampler(replayed, 4, seed=3), 40)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(draws(ReplaySampler(replayed, 4, seed=3), 20))
    assert [parts[position % 2][position // 2] for position in range(40)] == whole
    with pytest.raises(DataError, match="2 processes"):
        ReplaySampler(replayed, 3, seed=3)


def test_an_empty_view_is_refused(view):
    with pytest.raises(DataError, match="no training image"):
        ReplaySampler(replace(view, images=()), 4, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_loader_runs(replayed, workers):
    loader = build_detection_train_loader(
        dataset=detection_dicts(replayed),
        sampler=ReplaySampler(replayed, 4, seed=3),
        mapper=mapper(T.RandomFlip(), visible=SECOND.new_labels),
        total_batch_size=4,
        aspect_ratio_grouping=False,
        num_workers=workers,
    )
    plan = BatchPlan(replayed, 4, 3)
    for iteration, batch in enumerate(islice(loader, 4)):
        images = [replayed.images[index] for index, _ in plan.batch(iteration)]
        assert [entry["image_id"] for entry in batch] == [image.record.image_id for image in images]
        assert [labels(entry) for entry in batch] == [image.labels.tolist() for image in images]
        assert sum(entry["source"] == "memory" for entry in batch) == 1
