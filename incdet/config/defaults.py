"""Every configuration key, its default and its meaning.

Names follow detectron2 wherever it has one. A default that is incdet's own choice says *ours*; everything else is
detectron2's or torchvision's. Each method adds a node ``METHOD.<NAME>`` from its own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from incdet.config.node import CfgNode as CN
from incdet.config.node import Library


def get_cfg() -> CN:
    """A fresh copy of the default configuration, with the nodes of every method in ``incdet/methods``."""
    from incdet.methods import method_defaults  # here, because methods import this package's node

    cfg = CN()
    cfg.VERSION = 2
    cfg.TASK = "detection"  # or classification: whole images, on the same backbones, by the same engine
    cfg.BACKEND = "torchvision"
    cfg.OUTPUT_DIR = "output"
    cfg.NAME = ""  # of the run in tables and reports; empty = the methods' names
    cfg.STAMPS = ()  # what every result of the run carries as a warning: report/narrative.py says what each means
    cfg.SEED = 0
    cfg.METHODS = ("finetune",)
    cfg.METHOD = method_defaults()
    cfg.TASKS = _tasks()
    cfg.DATASETS = _datasets()
    cfg.DATALOADER = CN({"NUM_WORKERS": 2})
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True  # a batch holds wide images only, or tall ones only
    cfg.INPUT = _input()
    cfg.MODEL = _model()
    cfg.SOLVER = _solver()
    cfg.TEST = CN()
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    cfg.TEST.IMS_PER_BATCH = 8
    cfg.LOG_PERIOD = 20  # iterations between two lines of metrics.jsonl
    # A finished first task is shared by every run whose data, model, schedule and seed are the same. Empty = never.
    cfg.FIRST_TASK_CACHE = "output/first_tasks"
    # Overrides that hold from the second task on: the same keys as above, e.g. NEXT_TASKS.SOLVER.BASE_LR.
    cfg.NEXT_TASKS = CN(new_allowed=True)
    cfg.know(_detectron2())
    return cfg


def add_incdet_config(cfg: Any) -> None:
    """Add incdet's keys to Detectron2's configuration, as Detectron2's own projects add theirs.

    Its values stay as they are. From then on YAML is read safely, `_BASE_` may name a file of the model zoo
    (``detectron2://PascalVOC-Detection/faster_rcnn_R_50_C4.yaml``), and an error says where a key was set.

    Args:
        cfg: Detectron2's ``get_cfg()``, changed in place.
    """
    from incdet.backends.detectron2.config import adopt  # here, because only its users have the library

    adopt(cfg, get_cfg(), _detectron2())


def _detectron2() -> Library:
    return Library("detectron2", "BACKEND", _detectron2_defaults, _detectron2_file)


def _detectron2_defaults() -> Mapping[str, Any]:
    from incdet.backends.detectron2.config import defaults

    return defaults()


def _detectron2_file(name: str) -> Path:
    from incdet.backends.detectron2.config import zoo_file

    return zoo_file(name)


def _tasks() -> CN:
    node = CN()
    node.SPLIT = "10+10"  # "15+5", "10+5+5", "15+1x5": sizes of the tasks, any sum that matches the data
    node.PROTOCOL = "class_split"  # class_split, image_split, loco or latest_class: docs/protocols.md
    node.ORDER = "alphabetical"  # alphabetical, id (as the source lists them), listed, seed:<n>
    node.LISTED = ()  # the class order itself, when ORDER is listed
    # Above, the problem; here, e.g. "5+5", a split of its first task's classes, which alone are then taught and, on the
    # held-out images of that task, tested: for choosing a recipe (incdet sweep). Ours.
    node.PROXY = ""
    return node


def _datasets() -> CN:
    node = CN()
    node.ROOT = "datasets"
    # Known names, voc:<folder>:<split> or coco:<annotations>:<images>; several are read as one set.
    node.TRAIN = ("shapes_train",)
    node.TEST = ("shapes_test",)
    node.CLASSES = ()  # empty = those the data itself lists
    node.DIFFICULT = "keep"  # in training: keep, drop, ignore
    # Above 0, this share of TRAIN is held out and takes the place of TEST: for choosing a recipe. Ours.
    node.HELD_OUT = 0.0
    return node


def _input() -> CN:
    node = CN()
    node.MIN_SIZE_TRAIN = (800,)  # short side in pixels; several = one is drawn per image
    node.MAX_SIZE_TRAIN = 1333
    node.MIN_SIZE_TEST = 800
    node.MAX_SIZE_TEST = 1333
    node.FORMAT = "RGB"  # RGB or BGR: the order of MODEL.PIXEL_MEAN and PIXEL_STD, and what the weights expect
    node.RANDOM_FLIP = "horizontal"  # horizontal, none
    node.COLOR_JITTER = 0.0  # strength of brightness, contrast and saturation jitter. Ours
    node.ZOOM_OUT = 1.0  # above 1, half the images are pasted on a grey canvas up to this many times larger. Ours
    return node


def _model() -> CN:
    node = CN()
    node.WEIGHTS = ""  # "" = from scratch; a .safetensors, .pth, .pkl or .npz file, or torchvision://<enum>
    node.NECK = "fpn"  # fpn or c4
    node.PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, of pixels from 0 to 255
    node.PIXEL_STD = (58.395, 57.12, 57.375)
    node.BACKBONE = CN()
    node.BACKBONE.NAME = "resnet50"  # resnet18, resnet50, mobilenet_v2; for classification also mlp
    node.BACKBONE.NORM = "FrozenBN"  # FrozenBN, BN, none (folded into convolutions that have a bias)
    # A ResNet-50 steps in its 1x1 convolutions: for MSRA's weights; torchvision's were trained with it in the 3x3 ones.
    node.BACKBONE.STRIDE_IN_1X1 = False
    node.BACKBONE.WIDTH = 64  # channels of a ResNet's stem (64 is the standard network), units of an mlp's layers. Ours
    node.BACKBONE.FREEZE_AT = 2  # stages kept fixed: 0 none, 1 the stem, 2 stem and res2, ...
    node.BACKBONE.FREEZE_NORM = False  # BN keeps its statistics and its affine parameters fixed. Ours
    node.CLASSIFIER = CN()  # only where TASK is classification
    node.CLASSIFIER.HEAD = "linear"  # or cosine: a learned scale times the cosine, without a bias (LUCIR)
    node.CLASSIFIER.MULTI_HEAD = False  # one head per task, each trained on its own classes alone
    # Each class by itself, by a sigmoid: images with the labels of all their objects, as detection has them (PPI).
    node.CLASSIFIER.MULTI_LABEL = False
    node.FPN = CN()
    node.FPN.IN_FEATURES = ("res2", "res3", "res4", "res5")
    node.FPN.OUT_CHANNELS = 256
    node.ANCHOR_GENERATOR = CN()
    node.ANCHOR_GENERATOR.SIZES = ((32,), (64,), (128,), (256,), (512,))  # pixels, per level
    node.ANCHOR_GENERATOR.ASPECT_RATIOS = ((0.5, 1.0, 2.0),)  # one for all levels, or one per level
    node.RPN = CN()
    node.RPN.PRE_NMS_TOPK_TRAIN = 2000
    node.RPN.PRE_NMS_TOPK_TEST = 1000
    node.RPN.POST_NMS_TOPK_TRAIN = 1000
    node.RPN.POST_NMS_TOPK_TEST = 1000
    node.RPN.NMS_THRESH = 0.7
    node.RPN.IOU_THRESHOLDS = (0.3, 0.7)
    node.RPN.BATCH_SIZE_PER_IMAGE = 256
    node.RPN.POSITIVE_FRACTION = 0.5
    node.RPN.SMOOTH_L1_BETA = 1 / 9  # torchvision's, as in ROI_BOX_HEAD; detectron2's is 0
    node.ROI_HEADS = CN()
    node.ROI_HEADS.IOU_THRESHOLDS = (0.5,)
    node.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    node.ROI_HEADS.POSITIVE_FRACTION = 0.25
    node.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    node.ROI_HEADS.NMS_THRESH_TEST = 0.5
    node.ROI_BOX_HEAD = CN()
    node.ROI_BOX_HEAD.FC_DIM = 1024
    node.ROI_BOX_HEAD.POOLER_RESOLUTION = 7  # 14 is usual for C4
    node.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    node.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    node.ROI_BOX_HEAD.SMOOTH_L1_BETA = 1 / 9
    return node


def _solver() -> CN:
    node = CN()
    node.OPTIMIZER = "SGD"  # SGD, AdamW
    node.BASE_LR = 0.02
    node.BACKBONE_MULTIPLIER = 1.0  # learning rate of the backbone relative to BASE_LR
    node.BIAS_LR_FACTOR = 1.0
    node.MOMENTUM = 0.9
    node.NESTEROV = False
    node.WEIGHT_DECAY = 1e-4
    node.WEIGHT_DECAY_NORM = 0.0
    node.WEIGHT_DECAY_BIAS = None  # None = WEIGHT_DECAY
    node.IMS_PER_BATCH = 16  # over all processes
    node.MAX_ITER = 18000
    node.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # or WarmupCosineLR
    node.STEPS = (12000, 16000)
    node.GAMMA = 0.1
    node.WARMUP_ITERS = 100
    node.WARMUP_FACTOR = 0.001
    node.CHECKPOINT_PERIOD = 500  # iterations between two states that --resume can start from. 0 = only at a task's end
    node.CLIP_GRADIENTS = CN({"ENABLED": False})
    # full_model: the norm over all parameters (ours); norm: of each parameter; value: of each element.
    node.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    node.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    node.CLIP_GRADIENTS.NORM_TYPE = 2.0
    node.PRECISION = "32-true"  # Lightning Fabric's names: 32-true, 16-mixed, bf16-mixed
    node.EMA_DECAY = 0.0  # above 0, the averaged weights are the ones kept and tested
    return node
