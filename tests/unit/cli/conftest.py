"""A detector of two shapes that is trained within seconds, and a folder of newly labelled images."""

from pathlib import Path

import pytest
from pictures import SIZE, write_folder

from incdet.cli.config import read_config
from incdet.engine.launch import build_fabric
from incdet.engine.stream import Run

CONFIG = f"""
METHODS: [pseudo_label]
INPUT: {{MIN_SIZE_TRAIN: [{SIZE}], MAX_SIZE_TRAIN: {SIZE}, MIN_SIZE_TEST: {SIZE}, MAX_SIZE_TEST: {SIZE}}}
MODEL:
  BACKBONE: {{NAME: resnet18, NORM: BN, WIDTH: 16, FREEZE_AT: 0}}
  FPN: {{IN_FEATURES: [res3, res4], OUT_CHANNELS: 32}}
  ANCHOR_GENERATOR: {{SIZES: [[16], [32], [48]], ASPECT_RATIOS: [[1.0]]}}
  RPN: {{PRE_NMS_TOPK_TRAIN: 100, PRE_NMS_TOPK_TEST: 60, POST_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TEST: 20}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 64, POOLER_SAMPLING_RATIO: 1}}
SOLVER:
  OPTIMIZER: AdamW
  BASE_LR: 0.002
  LR_SCHEDULER_NAME: WarmupCosineLR
  WARMUP_ITERS: 10
  MAX_ITER: 80
  IMS_PER_BATCH: 8
  CLIP_GRADIENTS: {{ENABLED: true, CLIP_VALUE: 5.0}}
  CHECKPOINT_PERIOD: 10
NEXT_TASKS: {{MODEL: {{BACKBONE: {{FREEZE_AT: 2, FREEZE_NORM: true}}}}, SOLVER: {{MAX_ITER: 60, BASE_LR: 0.001}}}}
DATALOADER: {{NUM_WORKERS: 0}}
TEST: {{IMS_PER_BATCH: 8}}
FIRST_TASK_CACHE: ""
LOG_PERIOD: 10
TASKS: {{SPLIT: "2", ORDER: listed, LISTED: [disc, bar]}}
"""


@pytest.fixture(scope="session")
def old_run(tmp_path_factory) -> Path:
    """The run folder of a detector that knows discs and bars."""
    folder = tmp_path_factory.mktemp("old")
    old = ("disc", "bar")
    write_folder(folder / "train", 80, old, 1, "train", present=old)
    write_folder(folder / "test", 30, old, 2, "test", present=old)
    (folder / "config.yaml").write_text(CONFIG)
    data = ["DATASETS.TRAIN", f"voc:{folder}/train:train", "DATASETS.TEST", f"voc:{folder}/test:test"]
    cfg = read_config(folder / "config.yaml", [*data, "OUTPUT_DIR", str(folder / "run")])
    Run(cfg, build_fabric()).learn()
    return folder / "run"


@pytest.fixture(scope="session")
def new_labels(tmp_path_factory) -> Path:
    """Discs, bars and rings, of which only the rings are labelled."""
    return write_folder(tmp_path_factory.mktemp("new") / "rings", 60, ("ring",), 3)
