"""Measure what aligning features is worth to finished runs: tools/alignment.py RUN..."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["alignment", *sys.argv[1:]]))
