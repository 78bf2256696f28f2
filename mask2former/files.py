"""Writing files that appear whole or not at all."""

import contextlib
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)-(?P<process>\d+)\.tmp(\.\w+)?")
_HOST = re.sub(r"[^\w-]", "_", socket.gethostname())
_DAY = 24 * 3600


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True, suffix: str = "") -> Iterator[Path]:
    """Give a temporary file in the folder of `path`, and move it to `path` unless an error is raised meanwhile.

    The folder is made if it is missing. The temporary file's name ends in `suffix`, such as `.mp4`, for a library that
    chooses the format by it. With `sync` the new file is on the disk before the old one goes, so that
    one of them also survives a loss of power.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.tmp{suffix}")
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as stream:  # Windows flushes only what may be written
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, one of many: without waiting for the disk."""
    with replacing(path, sync=False) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def free_old_name(path: str | os.PathLike[str]) -> Path:
    """The name under which a file is kept when another takes its place: `NAME.old`, then `NAME.old2`, `NAME.old3`, …"""
    names = (f"{os.fspath(path)}.old{number}" for number in itertools.count(2))
    return next(name for name in map(Path, itertools.chain([f"{os.fspath(path)}.old"], names)) if not name.exists())


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files in `folder` and below of processes that died while they wrote.

    Of processes on other machines nothing is known: their files go a day after the last write.
    """
    for file in Path(folder).rglob(".*.tmp*"):
        match = _TEMPORARY.fullmatch(file.name)
        # a file that another process removes or, on Windows, holds open stays out of our hands
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if match and not _is_written(file, match["host"], int(match["process"])):
                file.unlink()


def _is_written(file: Path, host: str, process: int) -> bool:
    if host != _HOST:
        return time.time() - file.stat().st_mtime < _DAY
    if os.name == "nt":  # there, a file that is written cannot be removed
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a living process of another user
        return True
    return True
