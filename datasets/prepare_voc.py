"""Unpacks downloaded PASCAL VOC archives and checks every file: ``python datasets/prepare_voc.py *.tar``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incdet.data.check import find_defects
from incdet.data.unpack import unpack
from incdet.errors import IncdetError


def main() -> int:
    parser = argparse.ArgumentParser(description="Unpacks VOC archives into datasets/VOC2007 and datasets/VOC2012.")
    parser.add_argument("archives", nargs="+", type=Path, help="VOCtrainval_*.tar, VOCtest_*.tar")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="the folder for VOC2007, VOC2012")
    arguments = parser.parse_args()
    try:
        folders = {
            path for archive in arguments.archives for path in unpack(archive, arguments.output, ["VOCdevkit/VOC20??"])
        }
        defects = [
            defect
            for folder in sorted(folders)
            for split in ("trainval", "test")
            if (folder / "ImageSets" / "Main" / f"{split}.txt").exists()
            for defect in find_defects(f"voc:{folder}:{split}")
        ]
    except IncdetError as error:
        print(error, file=sys.stderr)
        return 1
    for defect in defects:
        print(defect, file=sys.stderr)
    print(f"{', '.join(map(str, sorted(folders)))}: {len(defects)} defects")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
