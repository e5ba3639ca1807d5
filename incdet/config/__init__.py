"""Configuration: ``get_cfg()`` and the tree it returns."""

from incdet.config.defaults import get_cfg
from incdet.config.node import CfgNode, annotate, config_for_task, diff, leaves

__all__ = ["CfgNode", "annotate", "config_for_task", "diff", "get_cfg", "leaves"]
