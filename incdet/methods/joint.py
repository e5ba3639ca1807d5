"""Joint training: the upper bound. Every label of every class seen so far, from the initial weights."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from incdet.data.views import TaskView, full_view
from incdet.methods.base import Method, TaskContext


class Joint(Method):
    """Joint training sees all labels at once, which leaves nothing for another method to remedy.

    The recipe is the first task's; its schedule is stretched to the iterations of all tasks together, so that no
    method is compared with a bound that trained for less.
    """

    from_scratch = True
    combines = False
    works_on = ("detection", "classification", "multi_label")

    def task_config(self, cfgs: Sequence[CfgNode]) -> CfgNode:
        cfg = cfgs[0].clone()
        total = sum(c.SOLVER.MAX_ITER for c in cfgs)
        cfg.SOLVER.STEPS = tuple(step * total // cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)
        cfg.SOLVER.MAX_ITER = total
        return cfg

    def training_data(self, view: TaskView, context: TaskContext) -> TaskView:
        cfg = context.cfg
        return full_view(
            context.dataset, context.stream, context.task, cfg.TASKS.PROTOCOL, cfg.DATASETS.DIFFICULT, cfg.SEED
        )
