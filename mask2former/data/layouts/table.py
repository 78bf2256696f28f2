"""What was understood of some data, for a person to look at before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from mask2former.data.summary import SEMANTIC, DataSummary

if TYPE_CHECKING:
    from mask2former.data.layouts.description import DataDescription

CLASSES_SHOWN = 60


def table(description: DataDescription, summaries: Mapping[str, DataSummary], title: str) -> str:
    """Splits, classes, and what was left out.

    Args:
        summaries: of each split, as `mask2former.data.summary.summarise` counts them.
        title: of the layout.
    """
    parts = [
        f"{description.root}: {title}, for {description.task} segmentation",
        _splits(description, summaries),
        _classes(description, summaries),
    ]
    named = {name for names in description.classes.values() for name in names}
    left_out = [category["name"] for category in description.categories if category["name"] not in named]
    if left_out:
        parts.append(f"Left out classes: {', '.join(left_out)}")
    return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in description.notes)] if description.notes else [])])


def _splits(description: DataDescription, summaries: Mapping[str, DataSummary]) -> str:
    rows = []
    for name, summary in summaries.items():
        split = description.splits[name]
        sizes = " .. ".join(dict.fromkeys(_size(s) for s in (summary.smallest, summary.median, summary.largest)))
        counted = summary.kind != SEMANTIC
        rows.append(
            [name, summary.images, summary.empty, *((summary.objects, summary.most[0]) if counted else ("", "")), sizes,
             split.annotations or split.labels or "none"]
        )  # fmt: skip
    heads = ["split", "images", "empty", "objects", "most in one", "sizes (width x height)", "annotations"]
    return tabulate(rows, headers=heads)


def _classes(description: DataDescription, summaries: Mapping[str, DataSummary]) -> str:
    values = {category["name"]: category.get("value", "") for category in description.categories}
    rows = []
    for number, (name, names) in enumerate(description.classes.items()):
        counts = [summary.counts for summary in summaries.values()]
        found = [count.images[number] if description.task == "semantic" else count.objects[number] for count in counts]
        sources = ", ".join(_source(item, values[item]) for item in names)
        rows.append([number, name, sources if sources != name else "", *found])
    what = "images" if description.task == "semantic" else "objects"
    heads = ["class", "name", "in the files", *(f"{name} {what}" for name in summaries)]
    more = f"\nand {len(rows) - CLASSES_SHOWN} more classes" if len(rows) > CLASSES_SHOWN else ""
    return tabulate(rows[:CLASSES_SHOWN], headers=heads) + more


def _source(name: str, value: object) -> str:
    return name if value == "" else f"{name} ({value})"


def _size(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"
