"""FaCHD's distillation: the student's region features must still speak to the teachers' frozen heads (CVPR 2026).

Other distillations pull the student's logits to the teacher's, and their gradients reach the student's predictor, where
they compete with the labels. Here the features themselves are asked: a teacher's predictor, which does not train,
decodes the student's features, and what it reads is to be what it read of its own. The student's predictor learns from
labels alone: without pseudo-labels or prototypes it forgets the old classes however well the features keep them.

The paper has two teachers, the old detector and an interim one of the new classes; regions on new objects are the
interim one's. Without it, nothing is distilled there. Neither the paper nor code of it could be had: this follows
public notes on it, which give the idea and the weight.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fvcore.common.config import CfgNode
from torch import Tensor

from incdet.interim import train_interim
from incdet.losses.frozen_head import decoded_boxes, decoded_classification, mixed_log_probabilities
from incdet.methods.base import Method, Pass, Step, TaskContext


class FrozenHeadDistill(Method):
    """Region features distilled through the frozen predictors of one teacher or two."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 20.0,  # alpha in the notes, which do not say what is averaged. Ours: everything, as in BPF's losses
        "INTERIM": False,  # the paper's second teacher; it costs another training on the task. Ours: without
        "INTERIM_ITERATIONS": None,  # of its training; None = as many as the task's
    }
    needs_teacher = True

    def __init__(self, node: CfgNode) -> None:
        super().__init__(node)
        self._interim: Any = None

    def begin_task(self, context: TaskContext) -> None:
        if self.cfg.INTERIM and context.teacher is not None:
            self._interim = train_interim(context.student, context.view, context.train, self.cfg.INTERIM_ITERATIONS)

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        is_new = self._new_objects(step)
        old = self._decode(step, step.teacher)
        if self._interim is None:
            logits, deltas = ([tensor[~is_new] for tensor in pair] for pair in old)
            classification, boxes = decoded_classification(*logits), decoded_boxes(*deltas)
        else:
            interim = self._decode(step, step.look(self._interim))
            mixed = [mixed_log_probabilities(*pair, is_new) for pair in zip(old[0], interim[0], strict=True)]
            classification = decoded_classification(*mixed)
            share = is_new.float().mean()
            boxes = (1 - share) * decoded_boxes(*(deltas[~is_new] for deltas in old[1]))
            boxes = boxes + share * decoded_boxes(*(deltas[is_new] for deltas in interim[1]))
        return {
            "loss_frozen_head_cls": self.cfg.WEIGHT * classification,
            "loss_frozen_head_box": self.cfg.WEIGHT * boxes,
        }

    def _new_objects(self, step: Step) -> Tensor:
        """Which of the student's sampled regions (R,) lie on a new object."""
        labels = step.student.regions.labels
        if labels is None:
            raise ValueError("FrozenHeadDistill needs regions that were sampled with targets")
        return (labels >= step.task.num_old) & (labels < step.task.num_seen)

    def _decode(self, step: Step, teacher: Pass) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What the teacher's predictor reads of the student's features and of its own: logits, and deltas."""
        logits, deltas = teacher.detector.predictor(step.student.regions.features)
        return (logits, teacher.regions.logits), (deltas, teacher.regions.deltas)
