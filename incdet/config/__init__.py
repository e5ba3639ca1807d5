"""Configuration: ``get_cfg()`` and the tree it returns."""

from incdet.config.defaults import add_incdet_config, get_cfg
from incdet.config.node import CfgNode, annotate, config_for_task, diff, leaves

__all__ = ["CfgNode", "add_incdet_config", "annotate", "config_for_task", "diff", "get_cfg", "leaves"]
