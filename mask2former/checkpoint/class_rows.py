"""Rows of the class head that go from one list of classes to another by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mask2former.checkpoint.configs import get_config
from mask2former.checkpoint.published import published_name
from mask2former.d2.data import MetadataCatalog
from mask2former.data.datasets.metadata import categories_of

SHOWN = 20


@dataclass(frozen=True)
class ClassRows:
    """Which rows of a class head, one for each class and perhaps one for "no object" after them, are known already.

    Attributes:
        kept: name of a class → its row in the file, in the order of the model.
        new: names of classes that the file does not have.
        old_count: number of classes in the file.
        names: the classes of the model.
    """

    kept: Mapping[str, int]
    new: tuple[str, ...]
    old_count: int
    names: tuple[str, ...]

    def fit(self, stored: Tensor, initial: Tensor) -> bool:
        """Whether two tensors are rows of these classes, both with or both without "no object"."""
        extra = len(stored) - self.old_count
        return extra in (0, 1) and len(initial) == len(self.names) + extra and stored.shape[1:] == initial.shape[1:]

    def fill(self, stored: Tensor, initial: Tensor) -> Tensor:
        """`initial` (n, ...) with the rows of `stored` (m, ...) whose classes have the same name, and "no object"."""
        filled = initial.detach().clone()
        for row, name in enumerate(self.names):
            if name in self.kept:
                filled[row] = stored[self.kept[name]]
        if len(stored) > self.old_count:
            filled[-1] = stored[-1]
        return filled

    def text(self) -> str:
        """A sentence on what is kept and what is new."""
        kept, new = _listed(list(self.kept)), _listed(list(self.new))
        return f"Rows of the class head kept by name: {kept}. New, with random values: {new}"


def match_classes(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> ClassRows | None:
    """The rows that two lists of classes (`name` of each) have in common; None if the lists agree or one is empty.

    Names agree whatever their case, and whether blanks, hyphens or underscores join their words. Of names given twice
    the first counts.
    """
    old_names, new_names = ([str(category["name"]) for category in categories] for categories in (old, new))
    if not old_names or not new_names or list(map(_plain, old_names)) == list(map(_plain, new_names)):
        return None
    rows: dict[str, int] = {}
    for row, name in enumerate(old_names):
        rows.setdefault(_plain(name), row)
    kept = {name: rows[_plain(name)] for name in new_names if _plain(name) in rows}
    return ClassRows(kept, tuple(n for n in new_names if n not in kept), len(old_names), tuple(new_names))


def known_classes(path: str | os.PathLike[str], content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes that weights were trained on, each with a `name`: as the file says, or as published for its name.

    Args:
        path: of the file, an address, or `zoo://` and a name.
        content: of the file, see `read_checkpoint`; of a folder of transformers `config` holds `id2label`.
    """
    if content.get("categories"):
        return [dict(category) for category in content["categories"]]
    labels = content.get("config", {}).get("id2label", {})
    if labels:
        return [{"name": str(labels[key])} for key in sorted(labels, key=int)]
    name = published_name(os.fspath(path))
    if not name:
        return []
    return categories_of(MetadataCatalog.get(get_config(name).DATASETS.TRAIN[0]))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) + more) if names else "none"
