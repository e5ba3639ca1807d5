"""Running a detector over many images, on one process or on all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from incdet.backends.base import Detector
from incdet.data.images import read_image
from incdet.data.loader import ImageSet, image_target
from incdet.data.views import TrainImage
from incdet.methods.base import Pass
from incdet.randomness import derive_seed, seed_torch
from incdet.structures import Batch, Detections
from incdet.tasks import TaskSpec


def detect(
    detector: Detector, paths: Sequence[Path], cfg: CfgNode, fabric: Fabric, description: str
) -> list[Detections]:
    """The detections of each image, in order, on every process; the processes share the work."""
    rank, world = fabric.global_rank, fabric.world_size
    mine = range(rank, len(paths), world)
    loader: DataLoader = DataLoader(
        Subset(ImageSet(paths), mine),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )
    found: dict[int, Detections] = {}
    for items in tqdm(loader, desc=description, disable=rank > 0, leave=False):
        positions, images = zip(*items, strict=True)
        outputs = detector.predict([image.to(fabric.device) for image in images])
        found.update(zip(positions, (output.cpu() for output in outputs), strict=True))
    if world > 1:
        parts: list[dict[int, Detections]] = [{} for _ in range(world)]
        torch.distributed.all_gather_object(parts, found)
        found = {position: detections for part in parts for position, detections in part.items()}
    return [found[position] for position in range(len(paths))]


def visible_features(
    detector: Detector, images: Sequence[TrainImage], cfg: CfgNode, fabric: Fabric, description: str
) -> list[Tensor]:
    """Region features (n, D) of each image's visible boxes, in eval mode, on the CPU."""
    features: list[Tensor] = []
    size = cfg.TEST.IMS_PER_BATCH
    for start in tqdm(range(0, len(images), size), desc=description, disable=fabric.global_rank > 0, leave=False):
        part = images[start : start + size]
        pixels = [read_image(image.record.path).float().div_(255).to(fabric.device) for image in part]
        boxes = [image_target(image).boxes.to(fabric.device) for image in part]
        features += [feature.cpu() for feature in detector.region_features(pixels, boxes)]
    return features


def passes(
    detector: Detector, images: Sequence[TrainImage], task: TaskSpec, cfg: CfgNode, fabric: Fabric, description: str
) -> Iterator[Pass]:
    """One image at a time through a detector in eval mode, with targets and with gradients.

    The processes share the images. Torch is seeded before each by its place among them, so that the regions that are
    sampled, and whatever the caller draws, do not depend on how many processes there are.

    Args:
        detector: in whatever mode; it is in eval mode while the images are asked for.
        images: training images, without augmentation and at the size of the test.
        task: that they are looked at for; a part of the seed.
        cfg: of the task.
        fabric: launched.
        description: of the progress bar.
    """

    def look(position: int) -> Pass:
        image = images[position]
        seed_torch(derive_seed(cfg.SEED, "passes", task.index, position))
        pixels = read_image(image.record.path).float().div_(255)
        outputs = detector.image_pass(Batch([pixels], [image_target(image)]).to(fabric.device))
        return Pass(detector, lambda: outputs, lambda: detector.region_pass(outputs))

    mine = range(fabric.global_rank, len(images), fabric.world_size)
    with detector.evaluating():
        for position in tqdm(mine, desc=description, disable=fabric.global_rank > 0, leave=False):
            yield look(position)
