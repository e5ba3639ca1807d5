"""The ``incdet`` command. Each sub-command is one module with ``add_arguments(parser)`` and ``run(arguments)``.

``tools/*.py`` are doors to the same functions for those who work in a checkout.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from incdet.errors import IncdetError

# command: (module, what it does). Modules are imported when their command is called: `incdet evaluate` needs no model.
COMMANDS = {
    "train": ("incdet.cli.train", "Learn the tasks of a split, test after each, and write a report."),
    "pretrain": ("incdet.cli.pretrain", "Train a detector's backbone by classification, to start from."),
    "add-classes": ("incdet.cli.add_classes", "Teach a trained model new classes from a folder of new labels."),
    "predict": ("incdet.cli.predict", "Detect objects in images; writes drawn images and a JSON file."),
    "benchmark": ("incdet.cli.benchmark", "Run many configurations with many seeds and keep one table of them."),
    "sweep": ("incdet.cli.sweep", "Search a method's values on a held-out part of the first task alone."),
    "alignment": ("incdet.cli.alignment", "Measure what aligning features is worth to finished runs."),
    "eli-toy": ("incdet.cli.eli_toy", "Repeat ELI's experiment with two tasks of digits, every aligner beside it."),
    "evaluate": ("incdet.evaluation.cli", "Score a COCO results file of any detector against VOC or COCO annotations."),
    "report": ("incdet.report.cli", "Write one HTML page about one run or several."),
    "table": ("incdet.report.table_cli", "Put the results of many runs into one table."),
    "inspect": ("incdet.report.inspect", "Show what each task of a split sees, or check a data set for defects."),
    "config": ("incdet.cli.config", "Print a merged configuration and where each key was set."),
    "demo": ("incdet.cli.demo", "Show forgetting, and its cure, on drawn shapes in a few minutes."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors that the user can mend are printed without a traceback.

    Returns:
        The exit status: 0 done, 1 what was asked for was found wanting, 2 an error to mend, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = argv[0] if argv and argv[0] in COMMANDS else None
    parser = argparse.ArgumentParser(prog="incdet", description="Teach a detector new classes without forgetting.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(
            name, help=purpose, description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            loaded = importlib.import_module(module)
            command.epilog = getattr(loaded, "EPILOG", None)
            loaded.add_arguments(command)
            command.set_defaults(run=loaded.run)
    arguments = parser.parse_args(argv)
    try:
        status = arguments.run(arguments)
    except IncdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished tasks and the last state are kept, --resume goes on from there", file=sys.stderr)
        return 130
    return status if isinstance(status, int) else 0
