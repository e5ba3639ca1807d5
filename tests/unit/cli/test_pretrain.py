"""``incdet pretrain``: what may be seen, what the classifier takes from the detector, and that its weights fit."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CLASSES, tiny_config

from incdet.backends import build_detector
from incdet.cli import main
from incdet.cli.pretrain import classifier_values, labelled_objects
from incdet.config import get_cfg
from incdet.data.shapes import SHAPE_CLASSES, write_shapes

SHORT = (
    "SOLVER.MAX_ITER",
    "2",
    "SOLVER.IMS_PER_BATCH",
    "4",
    "INPUT.MIN_SIZE_TRAIN",
    "(32,)",
    "INPUT.MIN_SIZE_TEST",
    "32",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Shapes, and the configuration of a narrow detector that learns them in two tasks."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_shapes(folder / "shapes", train=24, test=4, seed=3)
    (folder / "detector.yaml").write_text(
        f"DATASETS: {{ROOT: {folder}, TRAIN: [shapes_train], TEST: [shapes_test]}}\n"
        "TASKS: {SPLIT: '10+10'}\n"
        "MODEL: {BACKBONE: {NAME: resnet18, WIDTH: 8, NORM: FrozenBN, FREEZE_AT: 2}, PIXEL_STD: [1.0, 1.0, 1.0]}\n"
    )
    return folder


def detector_config(world):
    cfg = get_cfg()
    cfg.merge_from_file(world / "detector.yaml")
    return cfg


def test_only_what_the_first_task_may_see_is_cut(world):
    cfg = detector_config(world)
    first, everything = labelled_objects(cfg, None), labelled_objects(cfg, "shapes_train")
    assert first.classes == tuple(sorted(SHAPE_CLASSES)[:10])
    assert everything.classes == tuple(SHAPE_CLASSES)
    expected = {
        (record.image_id, everything.classes[label], *box)
        for record in everything.images
        for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
        if everything.classes[label] in first.classes
    }
    found = {
        (record.image_id, first.classes[label], *box)
        for record in first.images
        for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
    }
    assert found == expected


def test_the_classifier_has_the_detectors_network_and_trains_all_of_it():
    detector = tiny_config(
        "c4", "MODEL.BACKBONE.NORM", "FrozenBN", "INPUT.FORMAT", "BGR", "MODEL.BACKBONE.FREEZE_AT", 2
    )
    cfg = get_cfg()
    cfg.merge_from_list(classifier_values(detector))
    node = cfg.MODEL.BACKBONE
    assert (node.NAME, node.WIDTH, node.NORM, node.FREEZE_AT, cfg.INPUT.FORMAT) == ("resnet18", 8, "BN", 0, "BGR")
    detector.MODEL.BACKBONE.NORM = "none"
    cfg.merge_from_list(classifier_values(detector))
    assert cfg.MODEL.BACKBONE.NORM == "none"


def test_a_detector_starts_from_what_came_out_and_a_second_call_does_nothing(world, capsys):
    out = world / "backbone"
    command = ["pretrain", "--detector", str(world / "detector.yaml"), "--out", str(out), *SHORT]
    assert main(command) == 0
    model = out / "task_1" / "model.safetensors"
    assert f"incdet train --config-file {world / 'detector.yaml'} MODEL.WEIGHTS {model}" in capsys.readouterr().out
    before = model.stat().st_mtime_ns
    assert main(command) == 0
    assert model.stat().st_mtime_ns == before
    cfg = detector_config(world)
    cfg.MODEL.WEIGHTS = str(out)
    detector, trained = build_detector(cfg, 10), load_file(model)
    for name, tensor in detector.backbone.body.state_dict().items():
        assert torch.equal(tensor, trained[f"backbone.body.{name}"])


def test_a_folder_of_classes(world, tmp_path, capsys):
    out = tmp_path / "backbone"
    for name in CLASSES[:2]:
        write_images(tmp_path / "images" / name)
    command = ["pretrain", "--detector", str(world / "detector.yaml"), "--out", str(out), "--images"]
    assert main([*command, str(tmp_path / "images"), *SHORT]) == 0
    assert load_file(out / "task_1" / "model.safetensors")["head.weight"].shape == (2, 64)
    assert not (out / "crops").exists()
    assert main([*command, str(tmp_path / "images" / "a"), *SHORT]) == 2
    assert "expected one folder of images per class" in capsys.readouterr().err


def write_images(folder):
    folder.mkdir(parents=True)
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), 30 * number, np.uint8))
