"""From a folder or file to a description of the data in it."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mask2former.d2.data import DatasetCatalog
from mask2former.data.datasets.metadata import first_few
from mask2former.data.images import DataError, check_size, read_size
from mask2former.data.layouts.description import SEVERAL, DataDescription, is_described
from mask2former.data.layouts.layout import Found, Layout
from mask2former.data.layouts.registry import LAYOUTS
from mask2former.data.layouts.splits import SPLITS, TRAIN, settle
from mask2former.data.layouts.values import IGNORED
from mask2former.similar import did_you_mean

AUTO = "auto"
SIZES_READ = 1000
"""Of the images of a split, whose size is compared with what the annotations say; training compares all."""


def describe(path: str | os.PathLike[str], task: str = AUTO, *, seed: int = 0, name: str = "") -> DataDescription:
    """What data there are below a folder, or in a file, and how to train on them.

    Args:
        path: a folder, an annotation file, or a data description (then the rest is as it says there).
        task: "instance", "semantic", "panoptic", or "auto" for what the layout is made for.
        seed: of the images drawn for validation where no names tell a split.
        name: first part of the names of registered data sets; "" takes the folder's.

    Raises:
        FileNotFoundError: no such file or folder.
        DataError: no known layout, or one with mistakes; the message names the file and the fix.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path.absolute()}")
    if is_yaml_with(path, SEVERAL):
        raise DataError(f"{path} holds several data sets: `describe_all` and --data take it")
    if is_yaml_with(path, "layout"):
        description = DataDescription.from_yaml(path)
        if task not in (AUTO, description.task):
            raise DataError(f"{path} describes data for task {description.task}, not {task}: describe the data anew")
        return description
    layout, found = _recognise(path, task)
    task = layout.tasks[0] if task == AUTO else task
    name = _free_name(name or re.sub(r"\W+", "_", found.root.resolve().name).strip("_") or "own")
    layout.read_categories(found, task)
    kept = [item["name"] for item in found.categories if "value" not in item or item["name"].lower() not in IGNORED]
    description = DataDescription(
        name=name,
        layout=layout.name,
        task=task,
        root=str(found.root.resolve()),
        splits={TRAIN: next(iter(found.splits.values()))},
        categories=tuple({"id": number, **category} for number, category in enumerate(found.categories)),
        classes={name: (name,) for name in kept},
        seed=seed,
        source=str(path),
    )
    splits = settle(found.splits, _image_names(description, found), seed, found.notes)
    return replace(description, splits=splits, notes=tuple(found.notes))


def _free_name(name: str) -> str:
    """The name, or one like it where data sets that no description stands behind begin with it."""
    taken = {other for other in DatasetCatalog.list() if not is_described(other)}
    return next(n for n in (name, f"{name}_data", "own") if not {f"{n}_{split}" for split in SPLITS} & taken)


def is_yaml_with(path: Path, entry: str) -> bool:
    """Whether a path is that of a YAML file with an entry of some name at its top."""
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return False
    return re.search(rf"^{entry}:", path.read_text(encoding="utf-8", errors="replace"), re.M) is not None


def _recognise(path: Path, task: str) -> tuple[Layout, Found]:
    tasks = {item for layout in LAYOUTS.values() for item in layout.tasks}
    if task not in (AUTO, *tasks):
        raise DataError(f"there is no task {task!r}{did_you_mean(task, [AUTO, *tasks], else_all=True)}")
    all_found, errors = _look(path, task)
    if errors and not all_found:
        raise errors[0]
    if not all_found:
        known = "; ".join(layout.title for layout in LAYOUTS.values())
        raise DataError(f"{path}: no known layout of data: {known}. docs/own_data.md shows what each looks like")
    fitting = [name for name in all_found if task in (AUTO, *LAYOUTS[name].tasks)]
    if not fitting:
        there = {LAYOUTS[name].title: LAYOUTS[name].tasks for name in all_found}
        what = "; ".join(f"{title}, for {' or '.join(tasks)}" for title, tasks in there.items())
        raise DataError(f"{path}: nothing for task {task}; there is {what}")
    layout, found = LAYOUTS[fitting[0]], all_found[fitting[0]]
    others = [f"{LAYOUTS[name].title} (task {LAYOUTS[name].tasks[0]})" for name in all_found if name != fitting[0]]
    if others:
        found.notes.append(f"taken as {layout.title}; not read: {first_few(others)}")
    return layout, found


def _look(path: Path, task: str) -> tuple[dict[str, Found], list[DataError]]:
    """What the layouts find, and the errors of those that find something which cannot be used.

    Where COCO's files fit the task, others are not looked for: reading large files again takes its time.
    """
    all_found: dict[str, Found] = {}
    errors: list[DataError] = []
    for name, layout in LAYOUTS.items():
        if not name.startswith("coco") and any(task in (AUTO, *LAYOUTS[other].tasks) for other in all_found):
            break
        try:
            found = layout.find(path)
        except DataError as error:
            errors.append(error)
        else:
            all_found |= {} if found is None else {name: found}
    return all_found, errors


def _image_names(description: DataDescription, found: Found) -> Mapping[str, list[str]]:
    """The images of the splits from which others may be drawn, relative to their folder; checks all of them."""
    names = {}
    for name, split in found.splits.items():
        one = replace(description, splits={TRAIN: split})
        records = one.load(TRAIN)
        for record in records[:: max(1, len(records) // SIZES_READ)]:
            size = (record["height"], record["width"])
            check_size(record["file_name"], read_size(record["file_name"]), size, "its annotation")
        names[name] = [os.path.relpath(record["file_name"], found.root / split.images) for record in records]
    return names
