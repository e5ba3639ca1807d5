"""GPM on permuted digits: outputs on what the memory protects stay to 1e-5, whatever the optimiser carries along."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from incdet.backends import load_detector
from incdet.cli import main
from incdet.config import get_cfg
from incdet.data.digits import bundled_digits, write_permuted_digits
from incdet.data.images import read_image
from incdet.data.loader import image_target
from incdet.engine.protocol import Problem
from incdet.randomness import derive_seed

CONFIGS = Path(__file__).parents[2] / "configs/classification/permuted_digits/10x10"
KEPT = 40  # images whose inputs the memory holds entirely
OPTIMIZERS = {
    "SGD with momentum and decay": ("OPTIMIZER", "SGD", "MOMENTUM", "0.9", "WEIGHT_DECAY", "0.01"),
    "AdamW": ("OPTIMIZER", "AdamW", "BASE_LR", "0.003", "WEIGHT_DECAY", "0.5"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_permuted_digits(bundled_digits(), root / "permuted_digits", 3)
    return root


@pytest.fixture(params=OPTIMIZERS)
def learn(request, data, tmp_path):
    """Learns three permutations and returns the models after each."""
    keys = ["DATASETS.ROOT", str(data), "TASKS.SPLIT", "10x3", "FIRST_TASK_CACHE", "", "SOLVER.MAX_ITER", "60"]
    values = iter(OPTIMIZERS[request.param])
    keys += [word for key in values for word in (f"SOLVER.{key}", next(values))]

    def run(method: str, *more: str) -> list[Path]:
        folder = tmp_path / method
        words = ["--config-file", str(CONFIGS / f"{method}.yaml"), "OUTPUT_DIR", str(folder), *keys, *more]
        assert main(["train", *words]) == 0
        return [folder / f"task_{task}" / "model.safetensors" for task in (1, 2, 3)]

    return run


@torch.no_grad()
def first_heads_logits(model: Path) -> torch.Tensor:
    """What the first task's head says of the images whose inputs GPM drew after the first task (n, 10)."""
    classifier, _, cfg = load_detector(model, get_cfg())
    problem = Problem.load(cfg)
    images = problem.view(problem.stream[0]).images
    generator = torch.Generator().manual_seed(derive_seed(cfg.SEED, "gpm", 1))
    drawn = [images[index] for index in torch.randperm(len(images), generator=generator)[:KEPT].tolist()]
    pixels = [read_image(image.record.path).float() / 255 for image in drawn]
    boxes = [image_target(image).boxes for image in drawn]
    return classifier.predictor(torch.cat(classifier.region_features(pixels, boxes)))[0][:, :10]


def test_old_outputs_stay_and_the_rest_goes_on_learning(learn):
    first, *later = learn("gpm", "METHOD.GPM.THRESHOLD", "1.0", "METHOD.GPM.IMAGES", str(KEPT))
    before = first_heads_logits(first)
    assert before.abs().max() > 1
    for model in later:
        assert (first_heads_logits(model) - before).abs().max() < 1e-5
        assert change_of_weights(first, model) > 1e-2
    first, second, _ = learn("finetune")
    assert (first_heads_logits(second) - first_heads_logits(first)).abs().max() > 0.1


def change_of_weights(one: Path, other: Path) -> float:
    weights = [load_file(path)["backbone.body.fc1.0.weight"] for path in (one, other)]
    return (weights[1] - weights[0]).abs().max().item()
