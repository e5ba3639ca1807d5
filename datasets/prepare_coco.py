"""Unpacks downloaded COCO 2017 archives and checks every file: ``python datasets/prepare_coco.py *.zip``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.data.check import find_defects
from incdet.data.unpack import unpack
from incdet.errors import IncdetError


def main() -> int:
    parser = argparse.ArgumentParser(description="Unpacks COCO 2017 archives into datasets/coco.")
    parser.add_argument(
        "archives", nargs="+", type=Path, help="annotations_trainval2017.zip, train2017.zip, val2017.zip"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="the folder for coco")
    arguments = parser.parse_args()
    folder = arguments.output / "coco"
    try:
        for archive in arguments.archives:
            unpack(archive, folder, ["annotations", "train2017", "val2017"])
        defects = [
            defect
            for split in ("train", "val")
            if (folder / f"{split}2017").exists()
            for defect in find_defects(f"coco_2017_{split}", arguments.output)
        ]
    except IncdetError as error:
        print(error, file=sys.stderr)
        return 1
    for defect in defects:
        print(defect, file=sys.stderr)
    print(f"{folder}: {len(defects)} defects")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
