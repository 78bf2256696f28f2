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
    values = {category["name"]: category.get("value", "") for category in description.categories}
    sources = {
        name: ", ".join(_source(item, values[item]) for item in names) for name, names in description.classes.items()
    }
    files = {name: split.annotations or split.labels or "none" for name, split in description.splits.items()}
    parts = [
        f"{description.root}: {title}, for {description.task} segmentation",
        split_rows(summaries, files),
        class_rows(description.task, sources, summaries),
    ]
    notes = notes_of(description)
    return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in notes)] if notes else [])])


def notes_of(description: DataDescription) -> list[str]:
    """What was decided, and which classes are left out."""
    named = {name for names in description.classes.values() for name in names}
    left_out = [category["name"] for category in description.categories if category["name"] not in named]
    return [*([f"left out classes: {', '.join(left_out)}"] if left_out else []), *description.notes]


def split_rows(summaries: Mapping[str, DataSummary], files: Mapping[str, str]) -> str:
    """A line for each split.

    Args:
        files: the annotations of each split, where there is one place to name.
    """
    rows = []
    for name, summary in summaries.items():
        sizes = " .. ".join(dict.fromkeys(_size(s) for s in (summary.smallest, summary.median, summary.largest)))
        counted = summary.kind != SEMANTIC
        rows.append(
            [name, summary.images, summary.empty, *((summary.objects, summary.most[0]) if counted else ("", "")), sizes,
             *([files[name]] if files else [])]
        )  # fmt: skip
    heads = ["split", "images", "empty", "objects", "most in one", "sizes (width x height)", "annotations"]
    return tabulate(rows, headers=heads if files else heads[:-1])


def class_rows(task: str, sources: Mapping[str, str], summaries: Mapping[str, DataSummary]) -> str:
    """A line for each class of the model, with how often it occurs in each split.

    Args:
        sources: of each class what it is made of in the files.
    """
    rows = []
    for number, (name, source) in enumerate(sources.items()):
        counts = [summary.counts for summary in summaries.values()]
        found = [count.images[number] if task == "semantic" else count.objects[number] for count in counts]
        rows.append([number, name, source if source != name else "", *found])
    what = "images" if task == "semantic" else "objects"
    heads = ["class", "name", "in the files", *(f"{name} {what}" for name in summaries)]
    more = f"\nand {len(rows) - CLASSES_SHOWN} more classes" if len(rows) > CLASSES_SHOWN else ""
    return tabulate(rows[:CLASSES_SHOWN], headers=heads) + more


def _source(name: str, value: object) -> str:
    return name if value == "" else f"{name} ({value})"


def _size(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"
