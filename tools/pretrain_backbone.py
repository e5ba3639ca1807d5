"""Pretrain a detector's backbone by classification: tools/pretrain_backbone.py --detector FILE --out FOLDER."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
