"""ERD: elastic response distillation (Feng et al., CVPR 2022), carried over to a two-stage detector.

The original distils the dense head of a one-stage detector (GFL). Of the teacher's answers in an image it keeps those
whose confidence exceeds the mean by two standard deviations: chosen once for the class logits, and once for the boxes
by their own confidence, of which NMS leaves one per object. Nothing else of the teacher is distilled.

Kept: the rule of choice, both choices apart, the NMS, L2 on the chosen class logits, a box term that is weighted by
the student's confidence. Ours, since a two-stage detector has other answers:

- the candidates are the old detector's proposals; the same choice among all anchors distils the proposal network;
- a region's confidence is its best old class in a softmax, and its logits are compared without their mean, with the
  background's among them, for a softmax sees only differences;
- a box has no distribution over edges. Each class's box of a region is an answer whose confidence is the class's score,
  and squared distance of its deltas takes the place of the divergence. NMS compares the proposals, not decoded boxes;
- the classification loss is the detector's own. GFL's has a sigmoid per class, and the original applies it to the new
  classes only; in a softmax, unlabelled old objects push towards the background, and only distillation holds against.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from incdet.losses.distillation import ilod_classification, student_old_deltas, student_old_logits
from incdet.losses.elastic import choose_elastic_boxes, confident_boxes, elastic_proposals, stands_out
from incdet.methods.base import Method, Pass, Step
from incdet.structures import RegionOutputs


class Erd(Method):
    """The student keeps only those answers of the old detector that stand out among its answers to the image."""

    DEFAULTS: ClassVar = {
        "WEIGHT": 1.0,  # of the region terms (release)
        "WEIGHT_RPN": 1.0,  # ours
        "PROPOSALS": 256,  # the old detector's best, among which answers stand out. Ours
        "DEVIATIONS": 2.0,  # above the mean (paper and release)
        "NMS_IOU": 0.005,  # release
    }
    needs_teacher = True

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.teacher is None:
            return {}
        logits, boxes = self.distil_regions(step.student, step.teacher, step.task.num_old)
        anchors = elastic_proposals(step.student.images, step.teacher.images, self.cfg.DEVIATIONS, self.cfg.NMS_IOU)
        return {
            "loss_elastic_cls": self.cfg.WEIGHT * logits,
            "loss_elastic_box": self.cfg.WEIGHT * boxes,
            "loss_elastic_rpn": self.cfg.WEIGHT_RPN * anchors,
        }

    def distil_regions(self, student: Pass, teacher: Pass, num_old: int) -> tuple[Tensor, Tensor]:
        """The terms of the chosen class logits and of the chosen boxes."""
        target = teacher.regions_on([boxes[: self.cfg.PROPOSALS] for boxes in teacher.images.proposals])
        by_logits, by_box, classes = self.choose(target, len(teacher))
        chosen = torch.cat([by_logits, by_box]).unique()  # sorted, so the images stay in order
        if not len(chosen):
            nothing = target.logits.new_zeros(())
            return nothing, nothing
        rows = [chosen[target.image_index[chosen] == i] for i in range(len(teacher))]
        regions = student.regions_on([target.boxes[r] for r in rows])  # one pass for whatever was chosen

        here = torch.searchsorted(chosen, by_logits)
        logits = student_old_logits(regions.logits[here], num_old)
        here = torch.searchsorted(chosen, by_box)
        deltas = student_old_deltas(regions.deltas, num_old).expand(-1, num_old, -1)[here, classes]
        target_deltas = target.deltas.expand(-1, num_old, -1)[by_box, classes]
        confidence = regions.logits.softmax(dim=1)[here, classes]
        return (
            ilod_classification(logits, target.logits[by_logits]),
            confident_boxes(deltas, target_deltas, confidence),
        )

    def choose(self, teacher: RegionOutputs, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """The regions whose logits stand out, the regions whose boxes do, and the classes of those boxes."""
        scores = teacher.logits.softmax(dim=1)[:, :-1]
        by_logits, by_box, classes = [], [], []
        for i in range(images):
            here = torch.where(teacher.image_index == i)[0]
            by_logits.append(here[stands_out(scores[here].amax(dim=1), self.cfg.DEVIATIONS)])
            rows, labels = choose_elastic_boxes(
                teacher.boxes[here], scores[here], self.cfg.DEVIATIONS, self.cfg.NMS_IOU
            )
            by_box.append(here[rows])
            classes.append(labels)
        return torch.cat(by_logits), torch.cat(by_box), torch.cat(classes)
