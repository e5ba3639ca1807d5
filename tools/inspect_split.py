"""Show what each task sees, or check data: tools/inspect_split.py --data NAME --split 10+10 [--check]."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
