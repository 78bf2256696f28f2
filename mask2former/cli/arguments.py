"""Arguments that several commands take; nothing but Python's own is imported here."""

import argparse
from typing import Any


def described_parser(text: str | None, prog: str | None = None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows a docstring as it is written."""
    return argparse.ArgumentParser(
        prog=prog,
        description=(text or "").strip(),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive_int(text: str) -> int:
    """A whole number, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def parse_size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH, or one number for a square.

    Raises:
        ValueError: if it is neither.
    """
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add `--import MODULE`, whose values are in `modules` of the arguments."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="module to import first, such as my_data for my_data.py in the working folder, which registers data sets "
        "or components; may be given several times",
    )


def add_config_file_option(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add `--config-file`."""
    parser.add_argument(
        "--config-file", metavar="FILE", help="config of the model: a file, or a name in the model zoo", **options
    )


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`, which has to be given."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="checkpoint: a file, an address, a folder of transformers, or zoo:// and a name in the model zoo",
    )


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, the folder of a run."""
    parser.add_argument("--output", metavar="DIR", help="folder to write, short for OUTPUT_DIR DIR")


def add_config_pairs(parser: argparse.ArgumentParser) -> None:
    """Add `opts`, the rest of the line."""
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="pairs that override the config, at the very end",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and evaluation take, as Detectron2's tools: processes, modules, how exact weights must fit."""
    parser.add_argument(
        "--strict", action="store_true", help="stop unless MODEL.WEIGHTS holds exactly the weights of the model"
    )
    add_missing_weights_option(parser)
    add_import_option(parser)
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs *per machine*; ignored without a GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="I", help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of the first machine; 'auto' on a single one"
    )
    add_config_pairs(parser)


def add_missing_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add `--allow-missing-weights`."""
    parser.add_argument(
        "--allow-missing-weights",
        action="store_true",
        help="take also a model a part of which has random weights, because MODEL.WEIGHTS is empty or lacks it",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of Detectron2's training tools, which evaluate too."""
    add_config_file_option(parser, default="")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    add_run_arguments(parser)
