"""Images per second through incdet's engine against Detectron2's own plain training loop.

Both train the same detector from the same weights on the same images, in one process, in blocks of steps taken in turn:

- incdet: ``engine.loop.train_task`` as ``incdet train`` calls it, with its loader, optimiser, log and progress bar;
- Detectron2: a stock ``GeneralizedRCNN`` in the loop of its tools/plain_train_net.py, with its loader, its mapper, its
  optimiser, its schedule, its event storage and its writers.

Each block begins a training: the loader starts anew, so with workers the blocks must be long. The medians of the blocks
are compared; the first block of each side is not counted.

    python benchmarks/throughput.py [--blocks 8] [--steps 20] [--data datasets] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import default_writers
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from incdet.backends import build_detector
from incdet.backends.base import Detector
from incdet.backends.detectron2 import native
from incdet.backends.detectron2.data import ReplaySampler, detection_dicts
from incdet.cli.config import read_config
from incdet.config import CfgNode
from incdet.data.shapes import write_shapes
from incdet.data.views import TaskView
from incdet.engine.launch import build_fabric
from incdet.engine.learner import Learner
from incdet.engine.loop import train_task
from incdet.engine.protocol import Problem
from incdet.methods import build_methods

CONFIG = Path(__file__).parents[1] / "examples" / "detectron2_shapes.yaml"
STOCK = (
    "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
    "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
)  # fmt: skip
RESTING = 1e-9  # learning rate: the detector of the last block costs what that of the first did
Clock = Callable[[], float]


def ours(detector: Detector, view: TaskView, cfg: CfgNode, folder: Path) -> Callable[[], None]:
    """A block of incdet's engine."""
    learner, fabric = Learner(detector, None, build_methods(cfg), view.task), build_fabric()

    def block() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
            train_task(learner, view, cfg, fabric, folder, folder / "metrics.jsonl")

    return block


def theirs(detector: Detector, view: TaskView, cfg: CfgNode, folder: Path) -> Callable[[], None]:
    """A block of Detectron2's plain training loop."""
    cfg = native(cfg, detector.num_classes)
    cfg.merge_from_list(STOCK)
    cfg.MODEL.DEVICE = str(next(detector.parameters()).device)
    model = build_model(cfg).train()
    model.load_state_dict(detector.state_dict(), strict=True)
    loader = build_detection_train_loader(
        detection_dicts(view),
        mapper=DatasetMapper(cfg),
        sampler=ReplaySampler(view, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED),  # the images that incdet draws
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )

    def block() -> None:
        optimizer = build_optimizer(cfg, model)
        scheduler = build_lr_scheduler(cfg, optimizer)
        checkpointer = DetectionCheckpointer(model, str(folder), optimizer=optimizer, scheduler=scheduler)
        periodic = PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
        writers = default_writers(str(folder), cfg.SOLVER.MAX_ITER)
        with EventStorage() as storage:
            for data, iteration in zip(loader, range(cfg.SOLVER.MAX_ITER), strict=False):
                storage.iter = iteration
                losses = model(data)
                total = sum(losses.values())
                assert torch.isfinite(total).all(), losses
                values = {name: value.item() for name, value in comm.reduce_dict(losses).items()}
                storage.put_scalars(total_loss=sum(values.values()), **values)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
                scheduler.step()
                if (iteration + 1) % cfg.LOG_PERIOD == 0 or iteration == cfg.SOLVER.MAX_ITER - 1:
                    for writer in writers:
                        writer.write()
                periodic.step(iteration)

    return block


def measure(cfg: CfgNode, blocks: int, clock: Clock, folder: Path) -> dict[str, list[float]]:
    """Images per second of each block."""
    problem = Problem.load(cfg)
    view = problem.view(problem.stream[0])
    torch.manual_seed(0)
    detector = build_detector(cfg, view.task.num_seen).to(build_fabric().device)
    sides = {"incdet": ours, "Detectron2": theirs}
    run = {}
    for name, build in sides.items():
        (folder / name).mkdir()
        run[name] = build(detector, view, cfg, folder / name)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(blocks + 1):
        for name in sides if number % 2 else reversed(sides):  # neither always follows the other
            began = clock()
            run[name]()
            rates[name].append(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / (clock() - began))
    return {name: values[1:] for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: examples/detectron2_shapes.yaml")
    parser.add_argument("--blocks", type=int, default=8, help="of each side that count (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of a block (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="where shapes is; drawn aside if absent")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, for a machine that is busy")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as workshop:
        root = arguments.data
        if not (root / "shapes").is_dir():
            root = Path(workshop)
            write_shapes(root / "shapes")
        cfg = read_config(arguments.config, ["DATASETS.ROOT", str(root), *arguments.opts])
        cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = RESTING, arguments.steps, 10**9
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        rates = measure(cfg, arguments.blocks, clock, Path(workshop))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{'images per second':20}{'median':>10}{'slowest':>10}{'fastest':>10}")
    for name, values in rates.items():
        print(f"{name:20}{medians[name]:10.1f}{min(values):10.1f}{max(values):10.1f}")
    print(f"throughput {medians['incdet'] / medians['Detectron2']:.3f}")


if __name__ == "__main__":
    main()
