"""Finds the command that the first argument names, and runs it with the rest.

Arguments that are handed to a command also hold the words that they were parsed from, as `words`.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NoReturn

from .arguments import described_parser

COMMANDS = ("train", "eval", "predict", "check", "report", "zoo", "analyze", "convert", "export", "benchmark", "replay")
PROGRAM = "mask2former"
EPILOG = f"""{PROGRAM} COMMAND --help explains a command.

exit status:
  0    it is done
  1    it failed, or found something wrong; standard error or the last line says what
  2    an argument is wrong; nothing was done
  130  stopped by Ctrl-C; a training has saved its last step
  143  stopped by SIGTERM; a training has saved its last step
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `mask2former ARGUMENTS`, by default those of the process, and exit with one of the statuses in `EPILOG`."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = described_parser("Panoptic, instance and semantic segmentation with Mask2Former.", PROGRAM, EPILOG)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        _add_command(commands, name)
    args = parser.parse_args(words, argparse.Namespace(words=words[1:]))
    module, command = _module(words[0]), commands.choices[words[0]]
    if hasattr(module, "needs_library") and not module.needs_library(args):
        try:
            sys.exit(_run(module, command, args))
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(1)
    try:
        from mask2former.engine.command import run  # takes seconds
    except KeyboardInterrupt:
        sys.exit(130)
    run(lambda: _run(module, command, args))


def run_tool(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command as a script of `tools/` that takes the same arguments; returns the exit status."""
    module = _module(name)
    parser = described_parser(module.__doc__)
    module.add_arguments(parser)
    words = list(sys.argv[1:] if argv is None else argv)
    return _run(module, parser, parser.parse_args(words, argparse.Namespace(words=words))) or 0


def _run(module: ModuleType, parser: argparse.ArgumentParser, args: argparse.Namespace) -> Any:
    try:
        return module.run(args)
    except argparse.ArgumentError as error:  # only seen to be wrong by what has been read
        parser.error(str(error))


def _add_command(commands: Any, name: str) -> None:
    module = _module(name)
    text = (module.__doc__ or "").strip()
    parser = commands.add_parser(
        name,
        help=text.splitlines()[0].rstrip("."),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)


def _module(name: str) -> ModuleType:
    return import_module(f".{name}", __package__)


def _version() -> str:
    try:
        return version(PROGRAM)
    except PackageNotFoundError:  # a folder on the path
        return "(not installed)"
