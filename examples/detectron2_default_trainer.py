"""Detectron2's own tools learn two tasks of a split, with no method: what is not taught any more is forgotten.

incdet gives the splits by name, the mapper that hides what a task may not see, and a detector whose head grows.
Detectron2's trainer, checkpointer, evaluator and predictor take that detector for one of their own.

    python datasets/make_shapes.py
    python examples/detectron2_default_trainer.py [--iterations N] [--output FOLDER] [--datasets FOLDER]
"""

import argparse
from pathlib import Path
from statistics import fmean

import cv2
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.visualizer import Visualizer
from torch.utils.data import DataLoader

from incdet.backends.detectron2 import IncrementalRCNN
from incdet.backends.detectron2.data import TaskMapper
from incdet.backends.detectron2.splits import register_splits
from incdet.config import add_incdet_config

CONFIG = Path(__file__).with_name("detectron2_shapes.yaml")
PICTURE = 7  # of the test pictures, with a flower and a hexagon (task 1) and a leaf (task 2)


class Trainer(DefaultTrainer):
    """Detectron2's trainer, for one task."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> IncrementalRCNN:
        """The detector in ``MODEL.WEIGHTS``, grown by the classes that the task brings."""
        model = super().build_model(cfg)
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        model.expand_classes(len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes) - model.num_classes)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_detection_train_loader(cfg, mapper=TaskMapper(cfg))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def learn(task: int, known: int, weights: str, arguments: argparse.Namespace) -> CfgNode:
    """Train and test one task, from a detector of ``known`` classes; returns the configuration of what comes out."""
    cfg = get_cfg()
    add_incdet_config(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"shapes_train_10+10_task{task}",), (f"shapes_test_10+10_task{task}",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.WEIGHTS = known, weights
    cfg.SOLVER.MAX_ITER = arguments.iterations
    cfg.OUTPUT_DIR = str(arguments.output / f"task_{task}")
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.train()  # and test at the end

    classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    ap = [trainer.storage.latest()[f"bbox/AP-{name}"][0] for name in classes]
    for number in range(task):
        print(f"after task {task}: AP {fmean(ap[10 * number : 10 * number + 10]):.1f} of task {number + 1}'s classes")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.WEIGHTS = len(classes), f"{cfg.OUTPUT_DIR}/model_final.pth"
    return cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1000, help="of each task (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/detectron2/default_trainer"))
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="the folder that holds shapes")
    arguments = parser.parse_args()
    register_splits(arguments.datasets)
    first = learn(1, 10, "", arguments)
    cfg = learn(2, 10, first.MODEL.WEIGHTS, arguments)

    picture = cv2.imread(DatasetCatalog.get(cfg.DATASETS.TEST[0])[PICTURE]["file_name"])  # BGR
    found = DefaultPredictor(cfg)(picture)["instances"]
    canvas = Visualizer(picture[:, :, ::-1], MetadataCatalog.get(cfg.DATASETS.TEST[0]), scale=4)
    drawn = canvas.draw_instance_predictions(found[found.scores > 0.5]).get_image()
    cv2.imwrite(str(arguments.output / "found.png"), drawn[:, :, ::-1])
    print(f"drawn: {arguments.output / 'found.png'}")


if __name__ == "__main__":
    main()
