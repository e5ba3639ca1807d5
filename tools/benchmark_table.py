"""Put the results of many runs into one table: tools/benchmark_table.py output/*/ --format latex."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["table", *sys.argv[1:]]))
