"""iCaRL: incremental classifier and representation learning (Rebuffi et al., CVPR 2017).

Every class has a sigmoid of its own. A task trains on its images and on the stored ones alike: new classes follow the
labels, old classes what the old model says of the same image. Afterwards the images whose features lie nearest to their
class's mean are stored (herding), and an image belongs to the class whose stored images have the nearest mean.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from incdet.losses.icarl import distilled_cross_entropy
from incdet.methods.base import Step
from incdet.methods.replay import Replay


class Icarl(Replay):
    """Distillation by sigmoids, herded exemplars, and classification by their nearest mean."""

    DEFAULTS: ClassVar = {
        **Replay.DEFAULTS,
        "BUDGET": 2000,  # images in all (paper, CIFAR-100)
        "SELECTION": "herding",
        "SHARE": None,  # stored and new images are one set (paper)
        "READING": "nearest_mean",
    }
    needs_teacher = True
    replaces = ("loss_cls",)
    changes_first_task = True  # the sigmoids are trained from the first task on
    works_on = ("classification",)

    def losses(self, step: Step) -> dict[str, Tensor]:
        regions = step.student.regions
        if regions.labels is None or regions.weights is None:
            raise ValueError("losses need images that came with targets")
        old_logits = step.teacher.regions.logits if step.teacher is not None else None
        return {"loss_cls": distilled_cross_entropy(regions.logits, regions.labels, regions.weights, old_logits)}
