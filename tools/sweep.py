"""Search a method's values on the first task alone: tools/sweep.py --config-file FILE --space FILE --out FOLDER."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
