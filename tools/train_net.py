"""Learn the tasks of a split: tools/train_net.py --config-file FILE [KEY VALUE ...]."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
