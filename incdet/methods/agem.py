"""A-GEM: averaged gradient episodic memory (Chaudhry et al., ICLR 2019).

GEM with one constraint in the place of one for each past task: the mean loss of stored images drawn from all of them.
Its projection is a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from incdet.methods.gem import Gem
from incdet.methods.replay import Replay
from incdet.projection import project_off


class Agem(Gem):
    """No step may raise the mean loss of the stored images."""

    DEFAULTS: ClassVar = {
        **Replay.DEFAULTS,
        "IMAGES_PER_CLASS": 25,  # one per class, and up to 250 of a task, in the paper
        "SHARE": 0.5,  # of each batch that is drawn from the memory. Ours
    }

    def bounds(self) -> dict[str, Sequence[bool]]:
        return {"constraint_memory": [bool(tasks) for tasks in self._tasks]}

    def project(self, gradient: Tensor, constraints: Tensor) -> Tensor:
        return project_off(gradient, constraints[0])
