"""Several descriptions of data that one model is trained on: one list of classes, and the share of each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from mask2former.data.images import DataError
from mask2former.data.layouts.description import SEVERAL, DataDescription, check_keys, read_yaml
from mask2former.data.layouts.recognise import AUTO, describe, is_yaml_with
from mask2former.data.layouts.splits import TRAIN
from mask2former.data.layouts.table import class_rows, notes_of, split_rows
from mask2former.data.summary import DataSummary, summarise
from mask2former.files import write_text

HEADER = """\
# Several data sets that one model is trained on: read by `describe_all`, by `--data`, and for DATASETS.DESCRIPTIONS.
# Each is a data description, or `path:` of a folder, file or description. `ratio`, where `--data` reads it, says how
# many images of it come for those of the others. Classes of one name are one class.
"""

Part = tuple[DataDescription, float | None]


@dataclass(frozen=True)
class DataMixture:
    """Several data sets for one task, which can be used like one `DataDescription`.

    Attributes:
        parts: the data sets, as they are each by itself; their names differ.
        ratios: how many images of each come for those of the others; empty where all images are taken alike.

    Raises:
        DataError: the data are for different tasks, a class is a thing in one and stuff in another or has several
            weights, or a ratio is no positive number.
    """

    parts: Sequence[DataDescription]
    ratios: Sequence[float] = ()

    def __post_init__(self) -> None:
        for part, ratio in zip(self.parts, self.ratios, strict=False):
            if not 0 < ratio < math.inf:
                raise DataError(f"{part.source}: ratio {ratio} must be a positive number")
            if TRAIN not in part.splits:
                raise DataError(f"{part.source}: has a ratio, but no split to train on")
        _ = self.common, self.class_weights  # what is wrong with them is told now

    @cached_property
    def common(self) -> list[DataDescription]:
        """The data sets with one list of classes."""
        return with_common_classes(self.parts)

    @property
    def task(self) -> str:
        """Of all of them."""
        return self.parts[0].task

    @property
    def classes(self) -> Sequence[str]:
        """The classes of the model."""
        return list(self.common[0].classes)

    @property
    def ignore_label(self) -> int:
        """Of label maps."""
        return self.common[0].ignore_label

    @property
    def class_weights(self) -> Mapping[str, float]:
        """How much classes count in the classification loss, as far as any data set says so."""
        weights: dict[str, float] = {}
        for part in self.parts:
            for name, weight in part.class_weights.items():
                if weights.setdefault(name, weight) != weight:
                    raise DataError(f"{part.source}: class_weights: {name} has {weight}, and {weights[name]} elsewhere")
        return weights

    def register(self) -> dict[str, tuple[str, ...]]:
        """Registers each split of each, as `DataDescription.register` does; returns the names by split."""
        names: dict[str, tuple[str, ...]] = {}
        for part in self.common:
            for split, registered in part.register().items():
                names[split] = (*names.get(split, ()), *registered)
        return names

    def summarise(self, *, progress: bool = True) -> dict[str, DataSummary]:
        """Counts images, objects and classes of each split, over all data sets."""
        metadata = self.common[0].metadata()
        splits = dict.fromkeys(split for part in self.parts for split in part.splits)
        records = {s: [r for part in self.common if s in part.splits for r in part.load(s)] for s in splits}
        return {split: summarise(found, metadata, progress=progress) for split, found in records.items()}

    def table(self, summaries: Mapping[str, DataSummary] | None = None) -> str:
        """What was understood, as text: data sets, splits and classes of all together, and what was left out.

        Args:
            summaries: of the splits, where they have been made already.
        """
        summaries = self.summarise() if summaries is None else summaries
        ratios: Sequence[float | None] = self.ratios or [None] * len(self.parts)
        rows = [(part.name, part.title, part.root, ratio) for part, ratio in zip(self.parts, ratios, strict=True)]
        names = {name: {n for part in self.parts for n in part.classes.get(name, ())} for name in self.classes}
        sources = {name: ", ".join(sorted(found)) for name, found in names.items()}
        notes = [f"{part.name}: {note}" for part in self.parts for note in notes_of(part)]
        return "\n\n".join([
            f"{len(self.parts)} data sets, for {self.task} segmentation",
            tabulate(rows, headers=["data set", "layout", "folder", "ratio"]),
            split_rows(summaries, {}),
            class_rows(self.task, sources, summaries),
            *(["\n".join(f"- {note}" for note in notes)] if notes else []),
        ])  # fmt: skip

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Writes the descriptions into one file, which `describe_all` and DATASETS.DESCRIPTIONS read."""
        ratios = [{"ratio": ratio} for ratio in self.ratios] or [{}] * len(self.parts)
        entries = [{**ratio, **part.as_dict()} for part, ratio in zip(self.parts, ratios, strict=True)]
        text = yaml.safe_dump({SEVERAL: entries}, sort_keys=False, allow_unicode=True, width=120)
        write_text(path, HEADER + text)


def describe_all(sources: Sequence[str | os.PathLike[str]], task: str = AUTO) -> DataDescription | DataMixture:
    """What data there are in several places, to be trained on together; of one place as `describe` does.

    Args:
        sources: folders or files as `describe` takes them, or YAML files that hold several. `PATH:NUMBER` gives the
            ratio, how many images of it come for those of the others; with a ratio anywhere the others have 1.
        task: "instance", "semantic", "panoptic", or "auto".

    Raises:
        FileNotFoundError, DataError: as `describe` does, and as `DataMixture` does.
    """
    return _mixture([part for source in sources for part in _read(*_with_ratio(os.fspath(source)), task)])


def register_descriptions(paths: Sequence[str | os.PathLike[str]], *, beside: str | os.PathLike[str] = "") -> None:
    """Registers what data descriptions describe, as DATASETS.DESCRIPTIONS asks for; reads no data.

    Args:
        paths: of YAML files; a relative one is looked for in the working folder, then in `beside`.

    Raises:
        FileNotFoundError, DataError: there is no such file, or something is wrong with it.
    """
    for path in paths:
        path = Path(path).expanduser()
        places = [path, Path(beside) / path, Path(beside) / path.name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"DATASETS.DESCRIPTIONS: there is no file {path} (looked from {Path.cwd()})")
        if is_yaml_with(found, SEVERAL):
            _mixture(_read(os.fspath(found), None, AUTO)).register()
        else:
            DataDescription.from_yaml(found).register()


def with_common_classes(descriptions: Sequence[DataDescription]) -> list[DataDescription]:
    """The same data with one list of classes, so that one model can be trained on all of them.

    Classes of one name are one class. The list is that of the first, then what the others add; what a data set does not
    have, it shows nowhere.

    Raises:
        DataError: they are for different tasks, or a class is a thing in one and stuff in another.
    """
    tasks = {description.task for description in descriptions}
    if len(tasks) > 1:
        raise DataError(f"data for {' and '.join(sorted(tasks))} cannot be trained on together: give all the same task")
    common = {item["name"]: item for description in descriptions for item in description.model_classes}
    for description in descriptions:
        for item in description.model_classes:
            if bool(item.get("isthing", 1)) != bool(common[item["name"]].get("isthing", 1)):
                raise DataError(
                    f"{item['name']!r} is a thing in some of the data and stuff in others; rename it in one"
                )
    result = []
    for description in descriptions:
        known = {category["name"] for category in description.categories}
        added = [item for name, item in common.items() if name not in description.classes]
        number = 1 + max(category["id"] for category in description.categories)
        extra = [
            {**{key: item[key] for key in ("isthing", "color") if key in item}, "id": number + place,
             "name": item["name"] if item["name"] not in known else f"{item['name']} of other data"}
            for place, item in enumerate(added)
        ]  # fmt: skip
        foreign = {item["name"]: (category["name"],) for item, category in zip(added, extra, strict=True)}
        classes = {name: description.classes.get(name) or foreign[name] for name in common}
        result.append(replace(description, categories=(*description.categories, *extra), classes=classes))
    return result


def _with_ratio(source: str) -> tuple[str, float | None]:
    """`PATH` or `PATH:NUMBER`."""
    path, _, number = source.rpartition(":")
    if not path or Path(source).expanduser().exists():
        return source, None
    try:
        return path, float(number)
    except ValueError:
        return source, None


def _read(path: str, ratio: float | None, task: str) -> list[Part]:
    """The data sets of a place."""
    if not is_yaml_with(Path(path).expanduser(), SEVERAL):
        return [(describe(path, task), ratio)]
    if ratio is not None:
        raise DataError(f"{path} holds several data sets: give each a `ratio` there, not :{ratio:g}")
    content = read_yaml(Path(path).expanduser())
    check_keys(content, (SEVERAL,), (SEVERAL,), path)
    if not isinstance(content[SEVERAL], list) or not content[SEVERAL]:
        raise DataError(f"{path}: {SEVERAL} is no list of data sets")
    return [_of_entry(entry, path, task) for entry in content[SEVERAL]]


def _of_entry(entry: Any, source: str, task: str) -> Part:
    if not isinstance(entry, Mapping):
        raise DataError(f"{source}: {SEVERAL}: {str(entry)[:50]!r} is no mapping; give `path:`, or a description")
    entry = dict(entry)
    ratio = entry.pop("ratio", None)
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int | float)):
        raise DataError(f"{source}: {SEVERAL}: ratio {ratio!r} is no number")
    if "path" not in entry:
        description = DataDescription.from_dict(entry, source)
        if task not in (AUTO, description.task):
            raise DataError(f"{source} describes data for task {description.task}, not {task}")
        return description, ratio
    check_keys(entry, ("path", "name", "task"), ("path",), f"{source}: {SEVERAL}")
    place = os.path.join(os.path.dirname(source), os.path.expanduser(str(entry["path"])))
    return describe(place, str(entry.get("task", task)), name=str(entry.get("name", ""))), ratio


def _mixture(parts: Sequence[Part]) -> DataDescription | DataMixture:
    """Of data sets with a ratio or None; one is itself."""
    if len(parts) == 1:
        return parts[0][0]
    names: list[str] = []
    for description, _ in parts:
        free = (f"{description.name}_{number}" for number in range(2, len(parts) + 2))
        names.append(description.name if description.name not in names else next(n for n in free if n not in names))
    descriptions = [replace(part, name=name) for (part, _), name in zip(parts, names, strict=True)]
    given = any(ratio is not None for _, ratio in parts)
    return DataMixture(descriptions, [1.0 if ratio is None else ratio for _, ratio in parts] if given else ())
