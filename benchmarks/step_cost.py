"""What a step that remembers costs against a step that only fine-tunes.

Both learn the second task of configs/shapes/10+10 (frozen stages, frozen norms, image loading included) in one process,
step by step in turn, and the medians are compared. The incremental step has a teacher, pseudo-labels and Faster ILOD's
distillation of features, proposals and regions. Pseudo-labels are made once per task: their cost is shared among the
task's iterations and counted. Weights are random, but the background is given the lead that training gives it: a
detector that calls everything an object would pay for thousands of detections.

    python benchmarks/step_cost.py [--steps 60] [--threads 2] [--data datasets] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from incdet.backends import build_detector
from incdet.backends.base import Detector
from incdet.cli.config import read_config, shipped_config
from incdet.config import CfgNode, config_for_task
from incdet.data.loader import train_loader
from incdet.data.shapes import write_shapes
from incdet.data.views import TaskView
from incdet.engine.inference import detect
from incdet.engine.launch import build_fabric
from incdet.engine.learner import Learner, freeze_copy
from incdet.engine.protocol import Problem
from incdet.methods import build_methods
from incdet.optim import build_optimizer, set_learning_rate
from incdet.structures import Batch

Clock = Callable[[], float]
CONFIG = "shapes/10+10/pseudo_label.yaml"
INCREMENTAL = ("pseudo_label", "faster_ilod")
BACKGROUND_LEAD = 4.0  # logit
WARM_UP = 5  # steps of each side that are not counted
DETECTED = 160  # images that the teacher looks at to measure what a pseudo-label costs


class Stopwatch:
    """Seconds spent under each label, without what other labels inside it took."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: Counter[str] = Counter()
        self._inner = [0.0]

    def time(self, label: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        self._inner.append(0.0)
        began = self.clock()
        result = function(*arguments, **keywords)
        spent = self.clock() - began
        self.seconds[label] += spent - self._inner.pop()
        self._inner[-1] += spent
        return result

    def watch(self, owner: Any, name: str, label: Callable[..., str]) -> None:
        """Time every call of a method; ``label`` is given the call's arguments."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            return self.time(label(*arguments, **keywords), function, *arguments, **keywords)

        setattr(owner, name, timed)


class Side:
    """One of the two learners, with its own weights, optimiser and batches."""

    def __init__(
        self, methods: tuple[str, ...], previous: Detector, cfg: CfgNode, view: TaskView, steps: int, clock: Clock
    ) -> None:
        cfg = cfg.clone()
        cfg.METHODS = methods
        chosen = build_methods(cfg)
        needs_teacher = any(method.needs_teacher for method in chosen)
        self.teacher = freeze_copy(previous) if needs_teacher else None
        student = copy.deepcopy(previous).train()
        student.expand_classes(view.task.num_new)
        self.learner = Learner(student, self.teacher, chosen, view.task)
        self.optimizer = build_optimizer(cfg.SOLVER, student)
        set_learning_rate(self.optimizer, 1e-9)  # random weights are to stay finite
        self.clip = cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE if cfg.SOLVER.CLIP_GRADIENTS.ENABLED else 0.0
        self.batches: Iterator[Batch] = iter(train_loader(view, cfg, range(steps)))
        self.watch = Stopwatch(clock)
        self.steps: dict[str, list[float]] = defaultdict(list)
        self._install(student)

    def _install(self, student: Detector) -> None:
        watch = self.watch.watch
        watch(student, "image_pass", lambda *_: "student: image pass")
        watch(
            student, "region_pass", lambda _, boxes=None: f"student: {'sampled' if boxes is None else 'extra'} regions"
        )
        watch(student, "losses", lambda *_, **__: "losses")
        if self.teacher is not None:
            watch(self.teacher, "image_pass_like", lambda *_: "teacher: image pass")
            watch(self.teacher, "region_pass", lambda *_: "teacher: regions")
        for method in self.learner.methods:
            watch(method, "losses", lambda *_: "losses and proposals to distil")

    def step(self) -> None:
        """One training step as ``engine/loop.py`` takes it."""
        self.watch.seconds.clear()
        self.watch.time("whole", self._step)
        total = sum(self.watch.seconds.values())
        self.watch.seconds["rest"] = self.watch.seconds.pop("whole")
        for label, seconds in {**self.watch.seconds, "step": total}.items():
            self.steps[label].append(seconds)

    def _step(self) -> None:
        batch = self.watch.time("loading", next, self.batches)
        losses = self.learner(batch)
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        self.watch.time("backward", torch.Tensor.backward, total)
        self.watch.time("optimiser", self._update)

    def _update(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()

    def medians(self) -> dict[str, float]:
        """Milliseconds per label."""
        return {label: 1e3 * statistics.median(values[WARM_UP:]) for label, values in self.steps.items()}


def pseudo_label_cost(previous: Detector, view: TaskView, cfg: CfgNode, clock: Clock) -> float:
    """Milliseconds per iteration of detecting once on every image of the task."""
    paths = [image.record.path for image in view.images[:DETECTED]]
    teacher, fabric = freeze_copy(previous), build_fabric()
    began = clock()
    detect(teacher, paths, cfg, fabric, "pseudo-labels")
    return 1e3 * (clock() - began) / len(paths) * len(view) / cfg.SOLVER.MAX_ITER


def measure(
    config: str, root: Path, steps: int, clock: Clock, overrides: list[str]
) -> tuple[dict[str, float], dict[str, float], float]:
    """Medians of the fine-tuning and of the incremental step, and the pseudo-labels' share, in milliseconds."""
    cfg = read_config(shipped_config(config), ["DATASETS.ROOT", str(root), *overrides])
    problem = Problem.load(cfg)
    task, cfg = problem.stream[1], config_for_task(cfg, 2)
    view = problem.view(task)
    torch.manual_seed(0)
    previous = build_detector(cfg, task.num_old)
    previous.roi_heads.box_predictor.cls_score.bias.data[0] = BACKGROUND_LEAD  # torchvision has the background first
    sides = [Side(methods, previous, cfg, view, steps + WARM_UP, clock) for methods in (("finetune",), INCREMENTAL)]
    for number in range(steps + WARM_UP):
        for side in sides if number % 2 else reversed(sides):  # neither always follows the other
            torch.manual_seed(number)
            side.step()
    finetune, incremental = (side.medians() for side in sides)
    return finetune, incremental, pseudo_label_cost(previous, view, cfg, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG, help="below configs/ (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="where shapes is; drawn aside if absent")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, for a machine that is busy")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as workshop:
        root = arguments.data
        if not (root / "shapes").is_dir():
            root = Path(workshop)
            write_shapes(root / "shapes")
        finetune, incremental, labels = measure(arguments.config, root, arguments.steps, clock, arguments.opts)
    print(f"{'milliseconds per step (medians)':36}{'fine-tune':>12}{'incremental':>13}")
    for label in sorted(incremental, key=lambda name: (name == "step", name)):
        print(f"{label:36}{finetune.get(label, 0.0):12.1f}{incremental[label]:13.1f}")
    print(f"{'pseudo-labels, once per task':36}{0.0:12.1f}{labels:13.1f}")
    print(f"step_cost {(incremental['step'] + labels) / finetune['step']:.3f}")


if __name__ == "__main__":
    main()
