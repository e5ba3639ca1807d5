"""Independent training: every task alone, from the initial weights. What forward transfer is measured against."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from incdet.methods.base import Method


class Independent(Method):
    """Independent training starts every task anew, so nothing is left of the old classes for another method to keep.

    The recipe is the first task's, which is one for training from the initial weights.
    """

    from_scratch = True
    combines = False
    works_on = ("detection", "classification", "multi_label")

    def task_config(self, cfgs: Sequence[CfgNode]) -> CfgNode:
        return cfgs[0]
