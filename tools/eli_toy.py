"""Two tasks of digits and every aligner: tools/eli_toy.py [--mnist FOLDER]."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["eli-toy", *sys.argv[1:]]))
