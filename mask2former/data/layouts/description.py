"""What was understood of a folder of data, as a value, a table, a YAML file and registered data sets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mask2former.d2.config_file import parse_yaml
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.metadata import (
    Category,
    first_few,
    instance_metadata,
    panoptic_metadata,
    semantic_metadata,
)
from mask2former.data.images import DataError
from mask2former.data.layouts.classes import (
    check_mapping,
    class_table,
    model_classes,
    parse_mapping,
    renumber,
)
from mask2former.data.layouts.layout import INSTANCE, PANOPTIC, SEMANTIC, Records
from mask2former.data.layouts.registry import find_layout
from mask2former.data.layouts.splits import Split
from mask2former.data.layouts.table import table
from mask2former.data.summary import DataSummary, summarise
from mask2former.files import write_text
from mask2former.similar import did_you_mean

SEVERAL = "data_sets"
"""The entry of YAML files that hold several descriptions, see `mask2former.data.layouts.mixture`."""

EVALUATORS = {INSTANCE: "coco", SEMANTIC: "sem_seg", PANOPTIC: "coco_panoptic_seg"}


@dataclass(frozen=True)
class _Registered:
    """A split of a description, as a function that the catalog holds."""

    description: DataDescription
    split: str

    def __call__(self) -> Records:
        return self.description.load(self.split)

    def __hash__(self) -> int:
        return hash((self.description.name, self.split))  # evaluators cache by it; a description holds dicts


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """Data in one of the known layouts, and what to make of them; reading it touches no data.

    Attributes:
        name: first part of the names of its registered data sets.
        layout: name of the layout.
        task: "instance", "semantic" or "panoptic".
        root: absolute path of the folder that the splits are relative to.
        splits: "train", "val", "test".
        categories: the classes in the files: `name`; `id`, `isthing`, `color`, `value` where they say so.
        classes: the classes of the model → names of categories that each stands for; the others are left out.
        class_weights: how much classes of the model count in the classification loss; 1 for those it does not name.
        seed: of splits that were drawn.
        notes: what was decided, or left out and why.
    """

    name: str
    layout: str
    task: str
    root: str
    splits: Mapping[str, Split]
    categories: Sequence[Category]
    classes: Mapping[str, Sequence[str]]
    class_weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    notes: Sequence[str] = ()
    source: str = field(default="the description", compare=False)

    def __post_init__(self) -> None:
        layout = find_layout(self.layout, self.source)
        if self.task not in layout.tasks:
            raise DataError(f"{self.source}: task {self.task!r}; {layout.title} is for {' or '.join(layout.tasks)}")
        check_mapping(self.classes, self.categories, self.source)
        for name in self.class_weights:
            if name not in self.classes:
                raise DataError(
                    f"{self.source}: class_weights: no class {name!r}{did_you_mean(name, self.classes, else_all=True)}"
                )

    @property
    def title(self) -> str:
        """Of the layout, for people."""
        return find_layout(self.layout, self.source).title

    @property
    def model_classes(self) -> list[Category]:
        """The classes of the model in order, each with a `name`."""
        return model_classes(self.classes, self.categories, self.source)

    @property
    def ignore_label(self) -> int:
        """Of label maps."""
        return 255 if len(self.classes) <= 255 else 65535

    def load(self, split: str) -> Records:
        """The dataset dicts of a split, with classes of the model.

        Raises:
            DataError, FileNotFoundError: anything that is wrong with the files; the message names the file.
        """
        part = self.splits[split]
        root = Path(self.root)
        records = find_layout(self.layout, self.source).load(root, part, self.categories, self.task)
        images = root / part.images
        records = [r for r in records if part.holds(os.path.relpath(r["file_name"], images), self.seed)]
        if not records:
            raise DataError(f"{images}: no images of {split}")
        renumber(records, class_table(self.classes, self.categories), self.ignore_label)
        return records

    def summarise(self, *, progress: bool = True) -> dict[str, DataSummary]:
        """Counts images, objects and classes of each split."""
        metadata = self.metadata()
        return {split: summarise(self.load(split), metadata, progress=progress) for split in self.splits}

    def table(self, summaries: Mapping[str, DataSummary] | None = None) -> str:
        """What was understood, as text: splits, classes, and what was left out.

        Args:
            summaries: of the splits, where they have been made already.
        """
        return table(self, self.summarise() if summaries is None else summaries, self.title)

    def metadata(self) -> dict[str, Any]:
        """What Detectron2's catalog of metadata holds of its data sets."""
        make = {INSTANCE: instance_metadata, SEMANTIC: semantic_metadata, PANOPTIC: panoptic_metadata}[self.task]
        known = {"evaluator_type": EVALUATORS[self.task], **make(self.model_classes)}
        return known if self.task == INSTANCE else {**known, "ignore_label": self.ignore_label}

    def register(self, prefix: str | None = None) -> dict[str, tuple[str, ...]]:
        """Registers each split as `PREFIX_SPLIT`, so that configs can name it in DATASETS; reads no data.

        Registering again under a name replaces what a description has registered.

        Args:
            prefix: instead of `name`.

        Returns:
            The names by split.

        Raises:
            DataError: a name is that of another data set.
        """
        names = {split: f"{prefix or self.name}_{split}" for split in self.splits}
        for split, name in names.items():
            self._register(name, split)
        return {split: (name,) for split, name in names.items()}

    def _register(self, name: str, split: str) -> None:
        if name in DatasetCatalog.list():
            if not is_described(name):
                raise DataError(
                    f"{self.source}: there is a data set {name} already; give the description another `name`"
                )
            if DatasetCatalog[name] == _Registered(self, split):
                return
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, _Registered(self, split))
        MetadataCatalog.get(name).set(**self.metadata())

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Writes the data description, which `from_yaml`, `describe` and DATASETS.DESCRIPTIONS read."""
        write_text(path, HEADER + yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True, width=120))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML file."""
        splits = {name: _without_defaults(split) for name, split in self.splits.items()}
        same = all(list(names) == [name] for name, names in self.classes.items())
        content = {
            "name": self.name,
            "layout": self.layout,
            "task": self.task,
            "root": self.root,
            "splits": splits,
            "seed": self.seed,
            "classes": list(self.classes) if same else {k: _one_or_list(v) for k, v in self.classes.items()},
            "categories": [dict(category) for category in self.categories],
            "class_weights": dict(self.class_weights),
            "notes": list(self.notes),
        }
        drawn = any(split.portion for split in self.splits.values())
        return {key: value for key, value in content.items() if value not in ([], {}) and (key != "seed" or drawn)}

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> DataDescription:
        """Reads a data description.

        Raises:
            FileNotFoundError: no such file.
            DataError: no description, or one of something that does not exist; the message names the entry.
        """
        return cls.from_dict(read_yaml(path), os.fspath(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str) -> DataDescription:
        """Of plain values; a relative `root` is relative to the folder of `source`."""
        known = ("name", "layout", "task", "root", "splits", "seed", "classes", "categories", "class_weights", "notes")
        check_keys(content, known, ("layout", "task", "root", "splits", "categories"), source)
        root = os.path.abspath(os.path.join(os.path.dirname(source), os.path.expanduser(str(content["root"]))))
        categories = _records(content["categories"], source)
        classes = content.get("classes", [category["name"] for category in categories])
        return cls(
            name=str(content.get("name", "own")),
            layout=content["layout"],
            task=content["task"],
            root=root,
            splits=_splits(content["splits"], source),
            categories=categories,
            classes=parse_mapping(classes, source),
            class_weights=_weights(content.get("class_weights", {}), source),
            seed=int(content.get("seed", 0)),
            notes=tuple(map(str, content.get("notes", ()))),
            source=source,
        )


HEADER = """\
# What is known of some data: read by `describe`, by `--data`, and for DATASETS.DESCRIPTIONS of a config.
# `classes` may be edited. As a list it keeps these classes; as `name: name` and `name: [name, name]` it renames and
# merges them. Names are those under `categories`; what none names is left out. `class_weights`, such as
# `class_weights: {car: 2.0}`, says how much classes count in the classification loss; the others have 1.
"""


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file of plain values holds.

    Raises:
        FileNotFoundError: no such file.
        DataError: no YAML in UTF-8.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), os.fspath(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{os.fspath(path)}: no text in UTF-8: {error}") from error


def is_described(name: str) -> bool:
    """Whether a description stands behind a registered data set."""
    return name in DatasetCatalog.list() and isinstance(DatasetCatalog[name], _Registered)


def _without_defaults(split: Split) -> dict[str, Any]:
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(split).items()}
    return {key: value for key, value in values.items() if value not in ("", None)}


def _one_or_list(names: Sequence[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else list(names)


def check_keys(content: Any, known: Sequence[str], needed: Sequence[str], source: str) -> None:
    """Raises `DataError` for what is no mapping, has a key that is not `known`, or lacks one that is `needed`."""
    if not isinstance(content, Mapping):
        raise DataError(f"{source}: {str(content)[:50]!r} is no mapping of names to values")
    for key in content:
        if key not in known:
            raise DataError(f"{source}: unknown entry {key!r}{did_you_mean(key, known, else_all=True)}")
    missing = [key for key in needed if key not in content]
    if missing:
        raise DataError(f"{source}: lacks {', '.join(missing)}; this is no data description")


def _weights(content: Any, source: str) -> dict[str, float]:
    if not isinstance(content, Mapping):
        raise DataError(f"{source}: class_weights is no mapping of classes to numbers")
    for name, weight in content.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise DataError(f"{source}: class_weights: {name} has {weight!r}, which is no number from 0 up")
    return {name: float(weight) for name, weight in content.items()}


def _splits(content: Any, source: str) -> dict[str, Split]:
    check_keys(content, ("train", "val", "test"), (), f"{source}: splits")
    splits = {}
    for name, values in content.items():
        check_keys(values, tuple(Split.__dataclass_fields__), (), f"{source}: splits: {name}")
        portion = values.get("portion")
        if portion is not None:
            portion = (float(portion[0]), float(portion[1]))
        texts = {key: str(value) for key, value in values.items() if key != "portion"}
        splits[name] = Split(**texts, portion=portion)
    if not splits:
        raise DataError(f"{source}: splits: names none of train, val and test")
    return splits


def _records(content: Any, source: str) -> tuple[Category, ...]:
    keys = ("name", "id", "isthing", "color", "value")
    if not isinstance(content, list) or not content:
        raise DataError(f"{source}: categories is no list of classes")
    for record in content:
        check_keys(record, keys, ("name",), f"{source}: categories")
    names = [str(record["name"]) for record in content]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{source}: categories: {first_few(twice)} is there twice")
    return tuple({"id": number, **record, "name": str(record["name"])} for number, record in enumerate(content))
