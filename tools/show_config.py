"""Print a configuration as it is after all merges, with the origin of every key that differs from its default.

Usage: python tools/show_config.py --config-file configs/shapes/15+5.yaml [KEY VALUE ...]
"""

import argparse
import sys

from incdet.config import annotate, get_cfg
from incdet.errors import IncdetError


def main(arguments: list[str] | None = None) -> int:
    """Print the merged configuration; 2 when a file or an override cannot be honoured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", metavar="FILE", help="a YAML file; without it, the defaults")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="as on any other command")
    args = parser.parse_args(arguments)
    cfg = get_cfg()
    try:
        if args.config_file:
            cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.overrides)
    except IncdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(annotate(cfg, get_cfg()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
