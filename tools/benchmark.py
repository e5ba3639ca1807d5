"""Run many configurations with many seeds: tools/benchmark.py CONFIG... --seeds 0 1 2 --out FOLDER."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
