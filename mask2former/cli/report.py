"""Write report.html about a training: curves, tables by class, thresholds, confusion, best and worst images.

Examples:
    mask2former report output/run1
    mask2former report output/run1 --import my_data --images 5

A training writes the page at its end. Pictures of the best and worst images need the data set to be registered.
"""

import argparse

from .arguments import add_import_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder of the training, and how many images to show."""
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="folder of the training")
    parser.add_argument(
        "--images", type=int, default=3, metavar="N", help="best and worst images of each task (%(default)s)"
    )
    add_import_option(parser)


def run(args: argparse.Namespace) -> None:
    """Write the page and print where it is."""
    from mask2former.engine.command import import_modules
    from mask2former.report import write_report

    import_modules(args.modules)
    print(write_report(args.folder, images=max(args.images, 0)))
