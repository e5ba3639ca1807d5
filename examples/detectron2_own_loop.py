"""incdet's methods inside a training loop of Detectron2's kind: its loader, its optimiser, its schedule, its events.

``Run`` does what surrounds the loop: the student grown from the finished task, its teacher, pseudo-labels, tests. In
between, the model is called as any model of Detectron2 is, and returns the methods' losses beside its own.

    python datasets/make_shapes.py
    python examples/detectron2_own_loop.py [--method NAME] [--iterations N] [--output FOLDER] [--datasets FOLDER]
"""

import argparse
import time
from pathlib import Path

import cv2
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultPredictor
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter
from detectron2.utils.logger import setup_logger

from incdet.backends.detectron2 import native
from incdet.backends.detectron2.data import ReplaySampler, TaskMapper, detection_dicts
from incdet.backends.detectron2.weights import IncdetCheckpointer
from incdet.config import get_cfg
from incdet.engine.launch import build_fabric
from incdet.engine.learner import check_losses
from incdet.engine.loop import Trained
from incdet.engine.stream import Lesson, Run
from incdet.report.terminal import print_summary

CONFIG = Path(__file__).with_name("detectron2_shapes.yaml")
PICTURE = 7  # of the test pictures, with a flower and a hexagon (task 1) and a leaf (task 2)


def train(lesson: Lesson) -> Trained:
    """The loop of Detectron2's tools/plain_train_net.py over one task."""
    task, model = lesson.context.task, lesson.learner.student.train()
    cfg = native(lesson.context.cfg, task.num_seen)
    model.learner = lesson.learner  # from now on model(data) returns the methods' losses, too
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    loader = build_detection_train_loader(
        detection_dicts(lesson.view),
        mapper=TaskMapper(cfg, visible=range(task.num_seen)),  # the view itself holds no more than the task may see
        sampler=ReplaySampler(lesson.view, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    folder = lesson.context.task_folder
    folder.mkdir(parents=True, exist_ok=True)
    writers = [CommonMetricPrinter(cfg.SOLVER.MAX_ITER), JSONWriter(str(folder / "metrics.json"))]
    began = time.perf_counter()
    with EventStorage() as storage:
        for iteration, data in zip(range(cfg.SOLVER.MAX_ITER), loader, strict=False):  # the loader has no end
            losses = model(data)
            check_losses(losses, iteration)
            optimizer.zero_grad()
            with lesson.learner.around_backward(lesson.context.average):
                sum(losses.values()).backward()
            with lesson.learner.around_update():
                optimizer.step()
            storage.put_scalars(**{name: value.item() for name, value in losses.items()})
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            scheduler.step()
            if (iteration + 1) % cfg.LOG_PERIOD == 0 or iteration + 1 == cfg.SOLVER.MAX_ITER:
                for writer in writers:
                    writer.write()
            storage.step()
    return Trained(cfg.SOLVER.MAX_ITER, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="pseudo_label", help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=1000, help="of each task (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/detectron2/own_loop"), help="default: %(default)s")
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="the folder that holds shapes")
    arguments = parser.parse_args()
    setup_logger()
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG)
    cfg.METHODS, cfg.SOLVER.MAX_ITER = (arguments.method,), arguments.iterations
    cfg.OUTPUT_DIR, cfg.DATASETS.ROOT = str(arguments.output), str(arguments.datasets)
    run = Run(cfg, build_fabric())
    for task in run.stream:
        lesson = run.open_task(task.index)
        results = run.close_task(lesson, train(lesson))
    print_summary(results)

    # What comes out is a file of incdet's; Detectron2's predictor takes it.
    predictor = DefaultPredictor(native(cfg, num_classes=20))
    IncdetCheckpointer(predictor.model).load(str(run.task_folder(task) / "model.safetensors"))
    picture = run.problem.test.images[PICTURE].path
    found = predictor(cv2.imread(str(picture)))["instances"]
    named = [run.stream.classes[label] for label in found[found.scores > 0.5].pred_classes]
    print(f"{picture.name}: {', '.join(named) or 'nothing'}")


if __name__ == "__main__":
    main()
