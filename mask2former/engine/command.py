"""What the command lines share: modules to import first, and errors that end in one line."""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mask2former.checkpoint.errors import CheckpointError
from mask2former.engine.agreement import OtherProcessError

HANDLER = "mask2former"
"""Name of the log's handlers."""
USER_ERRORS = (CheckpointError, KeyError, OSError, OtherProcessError, ValueError)
"""What wrong settings, files and data raise; their text says what to do."""
OURS = ("mask2former", "mask2former_cli", "__main__")
"""The modules whose errors are written for users."""


def import_modules(names: Sequence[str]) -> None:
    """Import modules, also those in the working folder.

    Raises:
        ModuleNotFoundError: if there is no such module.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        importlib.import_module(name.removesuffix(".py").replace("/", "."))


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a tool and exit with what it returns; an error of the user's, or Ctrl-C, ends in one line.

    The traceback goes to the log file if there is one. Without one it is shown where the error comes from code that
    is not this library's, such as a module that `--import` names.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(_end("interrupted", status=130))
    except USER_ERRORS as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if isinstance(error, KeyError) and " " not in text:  # no sentence for a user, but a missing key of a dict
            raise
        log = _write_to_log(error)
        if log is None and not isinstance(error, CheckpointError | OSError) and not _is_ours(error):
            raise
        sys.exit(_end(f"error: {text}" + (f" (traceback: {log})" if log else ""), status=1))


def _end(line: str, *, status: int) -> int:
    sys.stderr.write(f"{line}\n")
    return status


def _write_to_log(error: Exception) -> Path | None:
    """Write the traceback to the files that log, and return the last one."""
    path = None
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.get_name() == HANDLER:
            trace = (type(error), error, error.__traceback__)
            handler.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, "stopped by an error", (), trace))
            path = Path(handler.baseFilename)
    return path


def _is_ours(error: Exception) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").partition(".")[0] in OURS
