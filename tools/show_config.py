"""Print a merged configuration and its origins: tools/show_config.py --config-file FILE [KEY VALUE ...]."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["config", *sys.argv[1:]]))
