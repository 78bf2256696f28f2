"""Check a registered data set: read every file, list what is wrong, count its classes, and draw some images.

Examples:
    mask2former check ade20k_sem_seg_val
    mask2former check garden_train --import my_data --limit 200 --output output/garden

`my_data.py` in the working folder registers `garden_train`. The exit status is 1 when anything is wrong. Pictures are
written to NAME.png in the output folder.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_import_option, positive_int

if TYPE_CHECKING:
    from mask2former.dataset_check import DatasetCheck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The name of the data set, and how much of it to read and to show."""
    parser.add_argument("name", metavar="NAME", help="registered name of the data set")
    parser.add_argument("--output", type=Path, default=Path("output/check_dataset"), metavar="DIR", help="%(default)s")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="read N images, spread over the set (all)")
    add_import_option(parser)
    parser.add_argument("--problems", type=int, default=20, metavar="N", help="problems to list (%(default)s)")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="images to draw, 0 for none (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Check the data set and print what was found; returns 1 if anything is wrong."""
    import logging

    from mask2former.d2.data import DatasetCatalog
    from mask2former.data.images import DataError
    from mask2former.dataset_check import check_dataset
    from mask2former.engine.command import import_modules
    from mask2former.similar import did_you_mean

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    import_modules(args.modules)
    if args.name not in DatasetCatalog.list():
        suggestion = did_you_mean(args.name, DatasetCatalog.list(), else_all=True)
        raise argparse.ArgumentError(None, f"no data set is registered as {args.name!r}{suggestion}")
    try:
        found = check_dataset(args.name, limit=args.limit, workers=args.workers)
    except (DataError, OSError) as error:
        print(f"{args.name}: cannot be loaded: {error}")
        return 1
    _print(found, args)
    return 1 if found.report.problems else 0


def _print(found: "DatasetCheck", args: argparse.Namespace) -> None:
    from mask2former.data.summary import spread
    from mask2former.dataset_check import draw_sheet, statistics
    from mask2former.evaluation.output import encode_png
    from mask2former.files import write_bytes

    problems = found.report.problems
    print(f"{args.name}: {found.read} of {found.total} images read")
    print(statistics(found.report, found.metadata))
    if not found.is_annotated:
        print("Images alone, to predict on")
    if found.healthy and args.pictures > 0:
        path = args.output / f"{args.name}.png"
        write_bytes(path, encode_png(draw_sheet(spread(found.healthy, args.pictures), found.metadata)))
        print(f"Pictures are in {path}")
    for problem in problems[: args.problems]:
        print(f"problem: {problem}")
    if len(problems) > args.problems:
        print(f"and {len(problems) - args.problems} more")
    print(f"{len(problems)} problems" if problems else "Nothing is wrong")
