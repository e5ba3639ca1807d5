"""Write one HTML page about one run or several: tools/report.py RUN... --out report.html."""

import sys

from incdet.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
