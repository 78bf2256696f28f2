"""What a layout of files is to this package, and what the readers of all of them share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mask2former.data.datasets.metadata import Category, first_few
from mask2former.data.images import DataError, missing_files
from mask2former.data.layouts.splits import Split, split_of

INSTANCE, SEMANTIC, PANOPTIC = "instance", "semantic", "panoptic"
DEPTH = 3
"""Folders below the one given, in which files are looked for."""

Records = list[dict[str, Any]]

FILE_KEYS = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


@dataclass
class Found:
    """A layout that was recognised.

    Attributes:
        root: folder that the paths of splits are relative to.
        splits: by name; "" is what no name tells.
        categories: classes in the files.
        notes: what was left out, and why.
    """

    root: Path
    splits: dict[str, Split]
    categories: list[Category] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Layout(ABC):
    """Reads one layout of files.

    Attributes:
        name: in data descriptions.
        tasks: what it can be trained for, the one that "auto" takes first.
        title: in messages.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    title: ClassVar[str]

    @abstractmethod
    def find(self, path: Path) -> Found | None:
        """The splits below a folder, or of a file; None where it is not of this layout.

        Raises:
            DataError: it is, but cannot be used as it stands.
        """

    @abstractmethod
    def read_categories(self, found: Found, task: str) -> None:
        """Sets `found.categories` from the files, adding to `found.notes`.

        Raises:
            DataError: there are none, or they contradict each other.
        """

    @abstractmethod
    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        """Dataset dicts, whose category ids are indices of `categories`.

        Raises:
            DataError, FileNotFoundError: anything that is wrong with them; the message names the file.
        """


def folders_below(root: Path, depth: int = DEPTH) -> list[Path]:
    """The folder, and those below it, parents first, without hidden ones."""
    folders, level = [root], [root]
    for _ in range(depth):
        level = sorted(
            Path(entry.path)
            for folder in level
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
        )
        folders += level
    return folders


def files_in(folder: Path, suffixes: str | tuple[str, ...]) -> list[Path]:
    """Files of a folder that end so, in any case of letters."""
    names = sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(suffixes) and e.is_file())
    return [folder / name for name in names if not name.startswith(".")]


def files_below(root: Path, suffixes: str | tuple[str, ...], depth: int = DEPTH) -> list[Path]:
    """Files that end so, in the folder and below it."""
    return [file for folder in folders_below(root, depth) for file in files_in(folder, suffixes)]


def relative(path: Path, root: Path) -> str:
    """A path below `root` as descriptions write it; "." is the root itself."""
    return Path(os.path.relpath(path, root)).as_posix()


def image_folder(names: Sequence[str], root: Path, near: Path, source: str, split: str) -> Path:
    """The folder below `root` that holds the images of an annotation file.

    Args:
        names: as the file gives them.
        near: folder of the file.
        split: of the file. Of several folders that hold the images, one whose path tells it is taken, or the nearest.

    Raises:
        DataError: no folder holds the first of them.
    """
    tried = list(dict.fromkeys([near, *folders_below(near, 2), root, *folders_below(root)]))
    some = names[:: max(1, len(names) // 20)][:20]
    counts = [sum((folder / name).is_file() for name in some) for folder in tried]
    fits = [split_of(relative(folder, root)) == split for folder in tried]
    if not any(counts):
        raise DataError(
            f"{source}: none of its images is below {root} (the first: {some[0] if some else 'it lists none'}); put "
            "them there, or correct file_name"
        )
    return tried[max(range(len(tried)), key=lambda place: (counts[place], fits[place]))]


def check_images(records: Iterable[Mapping[str, Any]], source: str) -> None:
    """Raises `DataError` for files that are not there, named by `source`."""
    missing = missing_files(record[key] for record in records for key in FILE_KEYS if key in record)
    if missing:
        raise DataError(f"{source}: {len(missing)} files that it names are missing: {first_few(missing)}")
