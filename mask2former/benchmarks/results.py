"""What a run found, as rows of numbers that say what they are of; and the JSON file of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mask2former.files import write_text

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing measured.

    Attributes:
        suite: name of the subcommand.
        case: what was measured; the columns that tell the rows of a suite apart.
        seconds: one value for each round, all of them kept.
        versus: name of what it was compared with, in turn.
        ratios: for each round, how many times as long that took.
        figures: other numbers; their names carry the units.
    """

    suite: str
    case: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    versus: str | None = None
    ratios: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the row with minimum, median and maximum beside the samples."""
        return {
            "suite": self.suite,
            "case": self.case,
            "seconds": summary(self.seconds),
            "ratio": {"versus": self.versus, **summary(self.ratios)} if self.ratios else None,
            "figures": self.figures,
        }


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Return the samples and their minimum, median and maximum; nothing of nothing."""
    if not samples:
        return {}
    return {"min": min(samples), "median": median(samples), "max": max(samples), "samples": list(samples)}


def write_document(path: Path, document: Document) -> None:
    """Write the JSON file of a run, whole or not at all."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def read_document(path: Path) -> Document:
    """Read the JSON file of a run.

    Raises:
        ValueError: if it is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(document, dict) or "rows" not in document or "machine" not in document:
        raise ValueError(f"{path} is not a file that `mask2former benchmark --json` wrote")
    return document
