"""The incremental splits in Detectron2's catalogs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from incdet.backends.detectron2.data import TaskMapper
from incdet.backends.detectron2.splits import register_split, register_splits
from incdet.data.catalog import load_dataset
from incdet.data.shapes import SHAPE_CLASSES, write_shapes
from incdet.data.voc import VOC_CLASSES
from incdet.errors import DataError, SplitError

pytestmark = pytest.mark.detectron2
OBJECT = """<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>11</ymin><xmax>{}</xmax><ymax>40</ymax></bndbox></object>"""


def write_voc(folder: Path, **splits: dict[str, tuple[str, ...]]) -> None:
    """VOC files as the devkit has them: per split, image ids and the classes of their objects (``?``: difficult).

    The n-th object of an image has the box (20 n, 10, 20 n + 15, 40).
    """
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, images in splits.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{image_id}\n" for image_id in images))
        for image_id, names in images.items():
            cv2.imwrite(str(folder / f"JPEGImages/{image_id}.jpg"), np.zeros((50, 80, 3), np.uint8))
            objects = [
                OBJECT.format(name.rstrip("?"), int(name.endswith("?")), 20 * n + 1, 20 * n + 15)
                for n, name in enumerate(names)
            ]
            size = "<size><width>80</width><height>50</height><depth>3</depth></size>"
            (folder / f"Annotations/{image_id}.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """VOC 2007 of five images. Under 10+10, aeroplane and bird are old; dog and sheep are new."""
    root = tmp_path_factory.mktemp("datasets")
    write_voc(
        root / "VOC2007",
        trainval={"000001": ("bird", "dog"), "000002": ("aeroplane",), "000003": ("sheep?", "dog")},
        test={"000004": ("bird", "dog?", "sheep"), "000005": ("cat?",)},
    )
    write_shapes(root / "shapes", train=2, test=3, size=64)
    register_splits(root)
    return root


def found(name):
    """Image id -> labels of its annotations."""
    return {
        entry["image_id"]: [item["category_id"] for item in entry["annotations"]] for entry in DatasetCatalog.get(name)
    }


def test_names(root):
    names = register_splits(root)
    assert len(names) == len(set(names)) == 7 * 19 + 2 * 19 + 2 * 4  # 2 + 2 + 2 + 3 + 4 + 6 tasks; COCO's 2 + 2
    assert (
        {
            "voc_2007_trainval_10+10_task1",
            "voc_2012_val_15+1x5_task6",
            "shapes_train_5+5+5+5_task4",
            "coco_2017_train_40+40_task1",
            "coco_2017_val_70+10_task2",
        }
        <= set(names)
        <= set(DatasetCatalog)
    )


def test_metadata_need_no_data():
    register_splits("nowhere")
    second = MetadataCatalog.get("voc_2007_trainval_15+1x5_task2")
    assert second.thing_classes == [*VOC_CLASSES[:15], "pottedplant"]
    assert second.visible_labels == range(15, 16)
    assert (second.evaluator_type, second.split, second.year) == ("pascal_voc", "trainval", 2007)
    assert second.dirname == str(Path("nowhere", "VOC2007"))
    assert MetadataCatalog.get("voc_2012_val_15+1x5_task2").visible_labels == range(16)
    assert MetadataCatalog.get("voc_2012_val_15+1x5_task2").year == 2012
    assert MetadataCatalog.get("shapes_test_19+1_task2").thing_classes == list(SHAPE_CLASSES)
    assert MetadataCatalog.get("shapes_test_19+1_task2").evaluator_type == "coco"
    coco = MetadataCatalog.get("coco_2017_train_70+10_task1")
    assert (len(coco.thing_classes), coco.thing_classes[0], coco.evaluator_type) == (70, "person", "coco")
    with pytest.raises(DataError, match="does not exist"):
        DatasetCatalog.get("voc_2007_test_10+10_task1")


def test_training_dicts_hold_the_tasks_images_and_labels(root):
    register_splits(root)
    bird, aeroplane = VOC_CLASSES.index("bird"), VOC_CLASSES.index("aeroplane")
    dog, sheep = VOC_CLASSES.index("dog"), VOC_CLASSES.index("sheep")
    assert found("voc_2007_trainval_10+10_task1") == {"000001": [bird], "000002": [aeroplane]}
    assert found("voc_2007_trainval_10+10_task2") == {"000001": [dog], "000003": [sheep, dog]}


def test_test_dicts_hold_all_images_and_seen_labels(root):
    register_splits(root)
    bird, cat, dog, sheep = (VOC_CLASSES.index(name) for name in ("bird", "cat", "dog", "sheep"))
    assert found("voc_2007_test_10+10_task1") == {"000004": [bird], "000005": [cat]}
    assert found("voc_2007_test_10+10_task2") == {"000004": [bird, dog, sheep], "000005": [cat]}


def test_registering_again_keeps_or_replaces(root, tmp_path):
    name = "voc_2007_trainval_10+10_task2"
    register_splits(root)
    MetadataCatalog.get(name).thing_colors = ["red"]
    register_splits(root)
    assert MetadataCatalog.get(name).thing_colors == ["red"]  # what a user added
    write_voc(tmp_path / "VOC2007", trainval={"000009": ("tvmonitor",)})
    register_splits(tmp_path)
    assert found(name) == {"000009": [19]}
    assert MetadataCatalog.get(name).dirname == str(tmp_path / "VOC2007")


def test_any_data_set(tmp_path):
    write_voc(tmp_path, train={"a": ("wolf", "ant"), "b": ("wolf?",), "c": ("cow", "yak")}, test={"d": ("yak", "ant")})
    train = register_split("farm", f"voc:{tmp_path}:train", "2+2", order="seed:1", difficult="drop")
    assert train == ["farm_2+2_task1", "farm_2+2_task2"]
    order = MetadataCatalog.get(train[1]).thing_classes
    assert sorted(order) == ["ant", "cow", "wolf", "yak"]
    assert MetadataCatalog.get(train[0]).thing_classes == order[:2]
    holding = [{order[label] for label in labels} for labels in found(train[0]).values()]
    assert set().union(*holding) == set(order[:2])
    assert "b" not in found(train[0]) | found(train[1])  # its only object is difficult
    test = register_split("farm_test", f"voc:{tmp_path}:test", "2+2", order="id", classes=order, test=True)
    assert found(test[1]) == {"d": [order.index("yak"), order.index("ant")]}


def test_loco_groups_what_occurs_together(tmp_path):
    write_voc(tmp_path, train={"a": ("wolf", "ant"), "b": ("cow", "yak")})
    names = register_split("pairs", f"voc:{tmp_path}:train", "2+2", protocol="loco")
    assert MetadataCatalog.get(names[1]).thing_classes == ["ant", "wolf", "cow", "yak"]
    assert [list(found(name)) for name in names] == [["a"], ["b"]]
    with pytest.raises(SplitError, match="training images"):
        register_split("pairs_test", f"voc:{tmp_path}:train", "2+2", protocol="loco", test=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"protocol": "clas_split"}, "protocol"), ({"difficult": "hide"}, "difficult"), ({"split": "10+11"}, "10\\+11")],
)
def test_what_does_not_fit_is_refused_at_once(changes, complaint):
    with pytest.raises(SplitError, match=complaint):
        register_split(**{"name": "wrong", "dataset": "voc_2007_test", "split": "10+10", **changes})


def perfect(name, evaluator):
    """The evaluator's figures for predictions that equal what ``name`` holds."""
    evaluator.reset()
    for entry in DatasetCatalog.get(name):
        boxes = torch.tensor([item["bbox"] for item in entry["annotations"]]).reshape(-1, 4)
        classes = torch.tensor([item["category_id"] for item in entry["annotations"]], dtype=torch.int64)
        scores = torch.full((len(classes),), 0.9)
        size = (entry["height"], entry["width"])
        instances = Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        evaluator.process([{"image_id": entry["image_id"]}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_detectron2s_voc_evaluator_runs_on_the_test_names(tmp_path):
    every = {f"{i:06d}": VOC_CLASSES[start : start + 4] for i, start in enumerate(range(0, 20, 4))}
    write_voc(tmp_path / "VOC2007", test=every)
    register_splits(tmp_path)
    for task in (1, 2):
        name = f"voc_2007_test_10+10_task{task}"
        assert perfect(name, PascalVOCDetectionEvaluator(name))["AP"] == pytest.approx(100)


def test_detectron2s_coco_evaluator_runs_on_the_test_names(root, tmp_path):
    register_splits(root)
    name = "shapes_test_10+10_task2"
    assert len(DatasetCatalog.get(name)) == len(load_dataset("shapes_test", root)) == 3
    figures = perfect(name, COCOEvaluator(name, output_dir=str(tmp_path)))
    assert figures["AP"] == pytest.approx(100)


def test_the_configured_training_loader_sees_the_task_alone(root):
    register_splits(root)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("voc_2007_trainval_10+10_task2",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.MIN_SIZE_TRAIN = 2, 0, (50,)
    batch = next(iter(build_detection_train_loader(cfg, mapper=TaskMapper(cfg))))
    assert {entry["image_id"] for entry in batch} == {"000001", "000003"}
    assert {label for entry in batch for label in entry["instances"].gt_classes.tolist()} <= set(range(10, 20))
