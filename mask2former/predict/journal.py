"""What was predicted, kept from the moment that an image is done, so that a killed run goes on where it ended.

A folder has a file for each process, `predictions.jsonl`, `predictions-1.jsonl`, ...: a line with the settings, then a
line of JSON for each image. A line is there whole or not at all: what a kill leaves of one is cut off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r"predictions(-\d+)?\.jsonl")


@dataclass(frozen=True)
class Entry:
    """Where the record of an image is."""

    name: str
    """Of its files, without suffix."""
    version: tuple[int, ...]
    """Of the image, see `Journal.append`."""
    path: Path
    offset: int


class Journal:
    """The records of a folder; a context in which this process adds to them.

    Args:
        folder: is made if it is missing.
        rank: number of this process.
    """

    def __init__(self, folder: Path, *, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / (f"predictions-{rank}.jsonl" if rank else "predictions.jsonl")
        self._settings: Mapping[str, Any] = {}

    def open(self, settings: Mapping[str, Any]) -> dict[str, Entry]:
        """Say with which settings images are predicted, and get what was done before, by path or address of the image.

        Raises:
            ValueError: it was done with other settings; the text names them.
        """
        self._settings = settings
        for path in self._paths():
            with path.open("rb") as file:
                first = _parse(file.readline())
            known = {} if first is None else first.get("settings", {})
            other = sorted(key for key in {**settings, **known} if known.get(key) != settings.get(key))
            if first is not None and other:
                raise ValueError(
                    f"{self._folder} holds predictions that were made with other settings ({', '.join(other)}): name "
                    "another folder, or add --overwrite to replace them"
                )
        return self.entries()

    def entries(self) -> dict[str, Entry]:
        """The last record of each image of which there is one, in the order of their lines."""
        found: dict[str, Entry] = {}
        for path in self._paths():
            with path.open("rb") as file:
                offset = 0
                for line in file:
                    record = _parse(line)
                    if record is not None and "file_name" in record:
                        found[record["file_name"]] = Entry(record["name"], tuple(record["version"]), path, offset)
                    offset += len(line)
        return found

    def clear(self) -> None:
        """Forget everything."""
        for path in self._paths():
            path.unlink()

    def __enter__(self) -> Journal:
        self._file = self._path.open("ab+")
        self._file.seek(0)
        whole = max((self._file.tell() for line in iter(self._file.readline, b"") if line.endswith(b"\n")), default=0)
        self._file.truncate(whole)
        if not whole:
            self._write({"settings": self._settings})
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, file_name: str, name: str, version: Iterable[int], record: Mapping[str, Any]) -> None:
        """Add the record of an image, when all its files are written.

        Args:
            file_name: path or address of the image.
            name: of its files, without suffix.
            version: numbers that change with the content of the image.
        """
        self._write({"file_name": file_name, "name": name, "version": list(version), **record})

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()

    def _paths(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))


def read_records(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    """The records themselves, one after the other."""
    for entry in entries:
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            record: dict[str, Any] = json.loads(file.readline())
            yield record


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line; None of a part of one."""
    return json.loads(line) if line.endswith(b"\n") else None
