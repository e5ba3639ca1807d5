"""Every file in configs/ can be read, and the R50-C4 references are the detectors that they say they are."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_data import SHARED_DATA
from torch import nn
from torchvision.models import get_weight

from incdet.backends import build_detector
from incdet.config import config_for_task, diff, get_cfg
from incdet.config.node import CfgNode
from incdet.data.catalog import load_dataset
from incdet.engine.launch import build_fabric
from incdet.engine.stream import Run
from incdet.methods import method_names
from incdet.optim import learning_rate
from incdet.structures import Batch

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml") if path.parent.name != "_base_")
IOD, MMA, ZOO = "c4_iod_finetune", "c4_mma_finetune", "zoo_c4_finetune"
needs_detectron2 = pytest.mark.detectron2
ON_BACKENDS = [
    pytest.param((IOD, "torchvision"), id="iod-torchvision"),
    pytest.param((MMA, "torchvision"), id="mma-torchvision"),
    pytest.param((IOD, "detectron2"), id="iod-detectron2", marks=needs_detectron2),
    pytest.param((MMA, "detectron2"), id="mma-detectron2", marks=needs_detectron2),
    pytest.param((ZOO, "detectron2"), id="zoo-detectron2", marks=needs_detectron2),
]


def read(name: str | Path, *overrides) -> CfgNode:
    """The file ``name`` in configs/, or the reference of that name for 10+10."""
    cfg = get_cfg()
    cfg.merge_from_file(CONFIGS / (name if isinstance(name, Path) else f"voc/10+10/{name}.yaml"))
    cfg.merge_from_list(overrides)
    return cfg


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=needs_detectron2 if p.stem.startswith("zoo_") else (), id=str(p)) for p in FILES]
)
def test_a_file_is_read_and_lies_where_its_values_say(path):
    cfg = read(path)
    assert path.parent.name == cfg.TASKS.SPLIT
    assert str(Path("output", path.with_suffix(""))) == cfg.OUTPUT_DIR
    assert set(cfg.METHODS) <= set(method_names())


# ---------------------------------------------------------------------- schedules and data

IOD_FIRST = (18000, {0: 5e-6, 100: 5e-3, 11999: 5e-3, 12000: 5e-4, 15999: 5e-4, 16000: 5e-5})
IOD_SHORT = (2000, {0: 5e-3, 1999: 5e-3})
MMA_FIRST = (10000, {0: 5e-3 / 3, 500: 5e-3, 7499: 5e-3, 7500: 5e-4})
MMA_NEXT = (10000, {0: 4e-4 / 3, 500: 4e-4, 7499: 4e-4, 7500: 4e-5})
SCHEDULES = {
    ("iod", "10+10"): (IOD_FIRST, (18000, {**IOD_FIRST[1], 0: 5e-3})),
    ("iod", "15+5"): (IOD_FIRST, IOD_SHORT),
    ("iod", "19+1"): (IOD_FIRST, IOD_SHORT),
    ("mma", "10+10"): (MMA_FIRST, MMA_NEXT),
    ("mma", "15+5"): (MMA_FIRST, MMA_NEXT),
    ("mma", "19+1"): (MMA_FIRST, (2500, {0: 4e-4 / 3, 500: 4e-4, 1999: 4e-4, 2000: 4e-5})),
}


@pytest.mark.parametrize("method", ["finetune", "faster_ilod"])
@pytest.mark.parametrize(("family", "split"), SCHEDULES)
def test_the_learning_rate_is_the_releases_in_each_task(family, split, method):
    cfg = read(Path("voc", split, f"c4_{family}_{method}.yaml"))
    assert list(cfg.METHODS) == [method]
    for task, (iterations, rates) in enumerate(SCHEDULES[family, split], start=1):
        solver = config_for_task(cfg, task).SOLVER
        assert iterations == solver.MAX_ITER
        assert {i: learning_rate(solver, i) for i in rates} == pytest.approx(rates)


@pytest.mark.parametrize(
    ("name", "batch", "difficult", "nms", "short_sides"),
    [(IOD, 8, "keep", 0.3, list(range(480, 801, 32))), (MMA, 4, "drop", 0.5, [800])],
)
def test_data_and_tests_are_the_releases(name, batch, difficult, nms, short_sides):
    cfg = read(name)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("voc_2007_trainval",), ("voc_2007_test",))
    assert [batch, difficult, nms] == [
        cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.DIFFICULT, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
    ]  # fmt: skip
    assert short_sides == list(cfg.INPUT.MIN_SIZE_TRAIN)


@pytest.mark.parametrize("name", [IOD, MMA])
def test_pixels_are_those_that_the_weights_were_trained_on(name):
    cfg = read(name)
    preset = get_weight(cfg.MODEL.WEIGHTS.removeprefix("torchvision://")).transforms()
    assert cfg.INPUT.FORMAT == "RGB"
    assert [255 * value for value in preset.mean] == pytest.approx(cfg.MODEL.PIXEL_MEAN)
    assert [255 * value for value in preset.std] == pytest.approx(cfg.MODEL.PIXEL_STD)


@needs_detectron2
def test_iods_two_references_differ_in_their_network_alone():
    portable, zoo = read(IOD, "BACKEND", "detectron2"), read(ZOO)
    unread = {
        "MODEL.NECK", "MODEL.FPN.IN_FEATURES",  # of shared backbones alone
        "MODEL.ROI_HEADS.NUM_CLASSES",  # the stream decides
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",  # not enabled
    }  # fmt: skip
    assert not zoo.SOLVER.CLIP_GRADIENTS.ENABLED
    assert set(diff(portable, zoo)) - unread == {
        "INPUT.FORMAT", "MODEL.BACKBONE.NAME", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.WEIGHTS",
        "OUTPUT_DIR", "SOLVER.CHECKPOINT_PERIOD",
    }  # fmt: skip


# ---------------------------------------------------------------------- detectors

STAGES = {"conv1": "stem"} | {f"layer{n}": f"res{n + 1}" for n in (1, 2, 3)}  # torchvision's names in Detectron2's


@pytest.fixture(scope="module")
def detector(request):
    """The reference ``name`` on ``backend`` for ten classes, without weights, for images of 64 pixels."""
    name, backend = request.param
    sizes = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64]
    return name, build_detector(read(name, "BACKEND", backend, "MODEL.WEIGHTS", "", *sizes), 10).eval()


@pytest.mark.parametrize("detector", ON_BACKENDS, indirect=True)
def test_batch_norm_is_frozen_and_so_are_the_stem_and_the_first_stage(detector):
    _, detector = detector
    names = [type(module).__name__ for module in detector.modules()]
    assert names.count("FrozenBatchNorm2d") == 53  # of a ResNet-50, the one in the box head among them
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in detector.modules())
    learns: dict[str, set[bool]] = {}
    for path, parameter in detector.named_parameters():
        part = path.split(".")
        stage = part[2 if part[1] == "body" else 1] if part[0] == "backbone" else "heads"
        learns.setdefault(STAGES.get(stage, stage), set()).add(parameter.requires_grad)
    assert learns == {"stem": {False}, "res2": {False}, "res3": {True}, "res4": {True}, "heads": {True}}


@pytest.mark.parametrize("detector", ON_BACKENDS, indirect=True)
def test_boxes_are_class_agnostic_in_iod_and_each_classs_own_in_mma(detector):
    """Fifteen anchors at each of 4 by 4 places; regions of 14 by 14 or 7 by 7; a head of 2,048 features."""
    name, detector = detector
    with torch.no_grad():
        images = detector.image_pass(Batch([torch.rand(3, 64, 64)], targets=None))
        regions = detector.region_pass(images, [torch.tensor([[8.0, 8.0, 40.0, 56.0]])])
    side, boxes = (7, 10) if name == MMA else (14, 1)
    assert images.objectness.shape == (1, 15 * 4 * 4)
    assert regions.pooled.shape == (1, 1024, side, side)
    assert regions.features.shape == (1, 2048)
    assert regions.logits.shape == (1, 11)
    assert regions.deltas.shape == (1, boxes, 4)


# ---------------------------------------------------------------------- training

QUICK = {
    "INPUT": {"MIN_SIZE_TRAIN": [160], "MAX_SIZE_TRAIN": 240, "MIN_SIZE_TEST": 160, "MAX_SIZE_TEST": 240},
    "MODEL": {
        "RPN": {"POST_NMS_TOPK_TRAIN": 100, "POST_NMS_TOPK_TEST": 5},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
    },
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2},
    "NEXT_TASKS": {"SOLVER": {"MAX_ITER": 2}},
    "DATALOADER": {"NUM_WORKERS": 0},
    "LOG_PERIOD": 1,
    "FIRST_TASK_CACHE": "",
}
FROZEN = re.compile(r"backbone\.(body\.(conv1|bn1|layer1)|stem|res2)\.")
# The portable ones with ImageNet's weights, which the folder has for a ResNet-18 without its last stage.
LIGHT = {"BACKBONE": {"NAME": "resnet18"}, "WEIGHTS": str(SHARED_DATA / "weights" / "resnet18_torchvision_partial.npz")}
# Detectron2's own ResNet from random weights: narrow, and with a batch norm that learns, lest its features explode.
NARROW = {
    "RESNETS": {"NORM": "BN", "STEM_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 16, "RES2_OUT_CHANNELS": 64},
    "WEIGHTS": "",
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve photographs in VOC layout: eight to learn from, of which four show the first ten classes."""
    source, folder = SHARED_DATA / "voc2012_mini", tmp_path_factory.mktemp("photographs")
    for name in ("Annotations", "JPEGImages"):
        (folder / name).symlink_to(source / name)
    dataset = load_dataset(f"voc:{source}:trainval")
    old = [image.image_id for image in dataset.images if image.labels.max() < 10]
    new = [image.image_id for image in dataset.images if image.labels.min() >= 10]
    splits = folder / "ImageSets" / "Main"
    splits.mkdir(parents=True)
    (splits / "train.txt").write_text("\n".join(old[:4] + new[:4]))
    (splits / "test.txt").write_text("\n".join(old[4:6] + new[4:6]))
    return folder


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("reference", ON_BACKENDS)
def test_a_reference_learns_two_tasks(reference, photographs, tmp_path):
    name, backend = reference
    cfg = read(name, "BACKEND", backend, "OUTPUT_DIR", str(tmp_path / "run"))
    cfg.merge_from_other_cfg(QUICK)
    cfg.merge_from_other_cfg({"MODEL": NARROW if name == ZOO else LIGHT})
    cfg.merge_from_other_cfg({"DATASETS": {key: f"voc:{photographs}:{key.lower()}" for key in ("TRAIN", "TEST")}})
    run = Run(cfg, build_fabric())
    results = run.learn()
    assert [task["train"]["iterations"] for task in results["tasks"]] == [2, 2]
    assert [task["evaluate"]["images"] for task in results["tasks"]] == [4, 4]

    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["task"], line["iteration"]) for line in lines] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(line[key] > 0 for line in lines for key in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"))

    before, after = (load_file(run.folder / f"task_{task}" / "model.safetensors") for task in (1, 2))
    same = {key for key, value in before.items() if torch.equal(value, after[key])}
    frozen = {key for key in before if FROZEN.match(key)}
    assert frozen <= same
    learns = {key for key, value in before.items() if value.ndim > 1} - frozen
    assert learns.isdisjoint(same)
    shutil.rmtree(run.folder)  # pytest keeps the folders of three sessions
