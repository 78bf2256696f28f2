"""Run the step again in which a training met something that was not finite.

Examples:
    mask2former replay output/failed_step_0000123.pth
    mask2former replay output/failed_step_0000123.pth --import my_components

A training that stops at such a step writes the file. Losses are shown, the first module with an output that is not
finite, and the first parameters with such a gradient. The exit status is 1 if there are any, 0 if all is finite, as
what float16 on a GPU makes infinite may be on a CPU.
"""

import argparse
from pathlib import Path

from .arguments import add_import_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument("file", type=Path, metavar="FILE", help="failed_step_<iteration>.pth of the run")
    add_import_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the step and print what came of it."""
    from mask2former.engine.command import import_modules
    from mask2former.engine.failed_step import replay_failed_step
    from mask2former.engine.trainer import Trainer

    import_modules(args.modules)
    steps = replay_failed_step(args.file, Trainer)
    for step in steps:
        print(step)
    return 0 if all(step.is_finite for step in steps) else 1
