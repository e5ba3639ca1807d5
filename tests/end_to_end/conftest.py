"""A data set and a detector so small that a whole run takes a second or two."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from incdet.cli import main
from incdet.data.shapes import write_shapes

TINY = {
    "DATASETS": {"TRAIN": "shapes_train", "TEST": "shapes_test"},
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MAX_SIZE_TRAIN": 64, "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 64},
    "MODEL": {
        "BACKBONE": {"NAME": "resnet18", "NORM": "BN", "WIDTH": 16, "FREEZE_AT": 0},
        "FPN": {"IN_FEATURES": ["res3", "res4"], "OUT_CHANNELS": 16},
        "ANCHOR_GENERATOR": {"SIZES": [[16], [24], [36]]},
        "RPN": {"PRE_NMS_TOPK_TRAIN": 100, "POST_NMS_TOPK_TRAIN": 50, "POST_NMS_TOPK_TEST": 20},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
        "ROI_BOX_HEAD": {"FC_DIM": 32, "POOLER_SAMPLING_RATIO": 1},
    },
    "SOLVER": {
        "IMS_PER_BATCH": 4,
        "BASE_LR": 0.01,
        "WARMUP_ITERS": 2,
        "STEPS": [6],
        "MAX_ITER": 8,
        "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_VALUE": 5.0},
        "CHECKPOINT_PERIOD": 2,
    },
    "NEXT_TASKS": {"MODEL": {"BACKBONE": {"FREEZE_AT": 2, "FREEZE_NORM": True}}, "SOLVER": {"MAX_ITER": 6}},
    # A detector of eight iterations is sure of nothing: without these nothing would become a pseudo-label.
    "METHOD": {
        "PSEUDO_LABEL": {"SCORE_IGNORE": 0.05, "SCORE_RPN": 0.06, "SCORE_ROI": 0.08},
        "IOD": {"FINETUNE_ITER": 4},
        "LWF": {"WARMUP_ITER": 4},
    },
    "DATALOADER": {"NUM_WORKERS": 0},
    "TEST": {"IMS_PER_BATCH": 16},
    "LOG_PERIOD": 1,
    "FIRST_TASK_CACHE": "",
}

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``DATASETS.ROOT`` names: 48 training and 16 test pictures of 64 by 64 pixels."""
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train=48, test=16, size=64)
    return root


@pytest.fixture(scope="session")
def config(datasets: Path) -> Path:
    path = datasets / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"DATASETS": TINY["DATASETS"] | {"ROOT": str(datasets)}}))
    return path


@pytest.fixture
def train(config: Path, tmp_path: Path) -> Train:
    """``train(folder, *flags, expect=0, KEY=value, ...)``: a run in this process; keys are written with ``__``."""

    def run(name: str, *flags: str, expect: int = 0, **overrides: object) -> Path:
        keys = [word for key, value in overrides.items() for word in (key.replace("__", "."), str(value))]
        folder = tmp_path / name
        command = ["train", "--config-file", str(config), *flags, "OUTPUT_DIR", str(folder), *keys]
        assert main(command) == expect
        return folder

    return run
