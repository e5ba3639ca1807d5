"""Detect objects in images: tools/predict.py --model MODEL --images FOLDER --out FOLDER."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
