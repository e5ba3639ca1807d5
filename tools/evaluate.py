"""Score a COCO results file: tools/evaluate.py predictions.json --data voc_2007_test --split 10+10."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
