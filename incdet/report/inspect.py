"""Looking at a split before training on it: the arguments and the work of ``tools/inspect_split.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from incdet.data.catalog import load_dataset
from incdet.data.check import find_defects
from incdet.data.manifest import protocol_manifest
from incdet.data.protocols import DIFFICULT_POLICIES, PROTOCOLS, dataset_stream
from incdet.files import write_json
from incdet.report.split import manifest_table, write_samples

EPILOG = """examples:
  a split:          incdet inspect --data voc_2007_trainval --split 15+5
  pictures of it:   incdet inspect --data shapes_train --split 10+5+5 --out output/inspect
  a data set:       incdet inspect --data voc:<folder>:train --check
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="NAME", help="a known name, voc:<folder>:<split>, coco:...")
    parser.add_argument(
        "--root", type=Path, default=Path("datasets"), help="of the known data sets (default: %(default)s)"
    )
    parser.add_argument("--split", default="10+10", help="e.g. 15+5, 10+5+5, 15+1x5 (default: %(default)s)")
    parser.add_argument(
        "--order", default="alphabetical", help="alphabetical, id, listed, seed:<n> (default: %(default)s)"
    )
    parser.add_argument("--listed", type=_names, default=(), metavar="A,B,...", help="the classes, for --order listed")
    parser.add_argument("--protocol", default="class_split", choices=PROTOCOLS, help="default: %(default)s")
    parser.add_argument("--difficult", default="keep", choices=DIFFICULT_POLICIES, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the image_split protocol (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write manifest.json and sample images here")
    parser.add_argument("--samples", type=_count, default=6, help="images of each task (default: %(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="list all defects of the data instead; exit status 1 if any"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for; the exit status is 1 where the check found defects, else 0."""
    return _check(arguments) if arguments.check else _inspect(arguments)


def _check(arguments: argparse.Namespace) -> int:
    defects = find_defects(arguments.data, arguments.root)
    for defect in defects:
        print(defect)
    print(f"{arguments.data}: {len(defects)} defect{'' if len(defects) == 1 else 's'}")
    return 1 if defects else 0


def _inspect(arguments: argparse.Namespace) -> int:
    dataset = load_dataset(arguments.data, arguments.root)
    stream = dataset_stream(dataset, arguments.split, arguments.order, arguments.listed, arguments.protocol)
    manifest = protocol_manifest(dataset, stream, arguments.protocol, arguments.difficult, arguments.seed)
    print(manifest_table(manifest))
    if arguments.out:
        write_json(arguments.out / "manifest.json", manifest)
        paths = write_samples(dataset, stream, manifest, arguments.out / "samples", arguments.samples)
        print(f"\nwrote {arguments.out / 'manifest.json'} and {len(paths)} images to {arguments.out / 'samples'}")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return count
