"""The command line that all scripts in `datasets/` share."""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mask2former.data.images import DataError


def run(
    prepare: Callable[..., None], description: str | None, *, folder: str, argv: Sequence[str] | None = None
) -> None:
    """Calls `prepare(root, workers=..., overwrite=...)` with what the command line says.

    Args:
        prepare: raises `DataError` or `OSError` for what a user can mend.
        description: what `--help` says.
        folder: of the data set, below $DETECTRON2_DATASETS; the default of `--root`.

    Raises:
        SystemExit: with the message of such an error.
    """
    default = Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))) / folder
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=default, help="folder of the data set (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        prepare(args.root, workers=args.workers, overwrite=args.overwrite)
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
