"""``incdet config``, and how every command reads a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import incdet
from incdet.config import CfgNode, annotate, get_cfg
from incdet.errors import ConfigError

EPILOG = """examples:
  all keys:         incdet config
  a file:           incdet config --config-file configs/shapes/10+10/pseudo_label.yaml
  with changes:     incdet config --config-file ... SOLVER.BASE_LR 0.005
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="a YAML file; without it, the defaults")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, last")


def run(arguments: argparse.Namespace) -> None:
    print(annotate(read_config(arguments.config_file, arguments.opts), get_cfg()), end="")


def read_config(file: Path | None, overrides: Sequence[object]) -> CfgNode:
    """Defaults, then the file, then ``KEY VALUE`` pairs."""
    cfg = get_cfg()
    if file is not None:
        cfg.merge_from_file(file)
    cfg.merge_from_list(overrides)
    return cfg


def shipped_config(name: str) -> Path:
    """A file of incdet's own ``configs`` folder.

    Raises:
        ConfigError: incdet was installed without its checkout.
    """
    path = Path(incdet.__file__).parents[1] / "configs" / name
    if not path.exists():
        raise ConfigError(f"{path} does not exist. Run in a checkout of incdet, installed with `pip install -e .`.")
    return path
