"""YOLO's text files of polygons: a line for each object, its class number and corners as shares of width and height.

https://docs.ultralytics.com/datasets/segment/
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former.d2.config_file import parse_yaml
from mask2former.data.datasets.metadata import Category
from mask2former.data.datasets.semantic import IMAGE_SUFFIXES
from mask2former.data.images import DataError
from mask2former.data.layouts.layout import (
    INSTANCE,
    Found,
    Layout,
    Records,
    files_below,
    files_in,
    folders_below,
    relative,
)
from mask2former.data.layouts.names import find_names
from mask2former.data.layouts.objects import image_record, polygon_object
from mask2former.data.layouts.splits import TEST, TRAIN, VAL, Split, split_of

OUTSIDE = 0.02
"""Share by which corners may lie outside of their image; tools round."""


class Yolo(Layout):
    """`data.yaml`, and `labels/….txt` beside `images/….jpg`; without a YAML file the folders tell the splits."""

    name, tasks, title = "yolo", (INSTANCE,), "YOLO segmentation"

    def find(self, path: Path) -> Found | None:
        files = [path] if path.is_file() else files_below(path, (".yaml", ".yml"), 1)
        for file in files:
            if file.suffix.lower() in (".yaml", ".yml") and (content := _data_yaml(file)) is not None:
                return _of_yaml(file, content)
        return _of_folders(path) if path.is_dir() else None

    def read_categories(self, found: Found, task: str) -> None:
        if found.categories:
            return
        named = find_names([found.root, *(found.root / split.labels for split in found.splits.values())])
        if named is not None:
            found.categories = [{"name": item["name"]} for item in named[0]]
            return
        files = [f for split in found.splits.values() for f in files_below(found.root / split.labels, ".txt", 8)]
        numbers = [_class_number(line.split()[0], f"{file}") for file in files for line in _lines(file)]
        found.notes.append("no file names the classes: they are called by their numbers")
        found.categories = [{"name": f"class_{number}"} for number in range(max(numbers, default=0) + 1)]

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        image_root, label_root = root / split.images, root / split.labels
        records: Records = []
        for image in _images(root, split):
            name = Path(os.path.relpath(image, image_root))
            record = image_record(
                image, name.with_suffix("").as_posix(), None, str(root / (split.names or split.images))
            )
            if split.labels:
                labels = (_beside(image) if split.names else label_root / name).with_suffix(".txt")
                record["annotations"] = _objects(labels, (record["height"], record["width"]), len(categories))
            records.append(record)
        return records


def _data_yaml(file: Path) -> dict[str, Any] | None:
    """The content of a file that names classes and the images to train on, None of others."""
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), str(file), number_keys=True)
    except (ValueError, OSError):
        return None
    return content if "names" in content and {TRAIN, VAL} & set(content) else None


def _of_yaml(file: Path, content: Mapping[str, Any]) -> Found:
    names = content["names"]
    if isinstance(names, Mapping):
        keys = sorted(names, key=lambda key: _class_number(str(key), f"{file}: names"))
        if [int(key) for key in keys] != list(range(len(keys))):
            raise DataError(f"{file}: names gives the numbers {', '.join(map(str, keys))}; they go from 0 without gaps")
        names = [names[key] for key in keys]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names is no list of classes")
    root = file.parent
    if isinstance(content.get("path"), str) and (root / content["path"]).is_dir():
        root = root / content["path"]
    splits = {
        split: _split_of_entry(root, content[key], f"{file}: {key}")
        for split, key in ((TRAIN, "train"), (VAL, "val"), (TEST, "test"))
        if content.get(key)
    }
    if VAL in splits and splits[VAL] == splits.get(TRAIN):
        del splits[VAL]
    return Found(root, splits, [{"name": str(name)} for name in names])


def _split_of_entry(root: Path, entry: Any, where: str) -> Split:
    """A folder of images, or a text file that lists them; Roboflow writes `../train/images` for `train/images`."""
    if isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]
    if not isinstance(entry, str):
        raise DataError(
            f"{where}: {entry!r} is not one folder; put the images below one, or describe each set by itself"
        )
    tried = [root / entry, root / entry.removeprefix("../"), root / "images" / entry]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise DataError(f"{where}: there is no folder or file {entry} in {root}")
    if found.is_file():
        return Split(names=relative(found, root), labels=".")
    if not (labels := _beside(found)).is_dir() and (found / "images").is_dir():
        found, labels = found / "images", found / "labels"
    return Split(images=relative(found, root), labels=relative(labels, root) if labels.is_dir() else "")


def _beside(path: Path) -> Path:
    """The path in which the last folder `images` is `labels` instead."""
    parts = list(path.parts)
    places = [place for place, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts)


def _of_folders(root: Path) -> Found | None:
    splits: dict[str, Split] = {}
    for folder in folders_below(root):
        if "images" not in folder.relative_to(root).parts or not files_in(folder, IMAGE_SUFFIXES):
            continue
        labels = _beside(folder)
        if labels.is_dir() and files_in(labels, ".txt"):
            splits.setdefault(
                split_of(folder.relative_to(root)), Split(images=relative(folder, root), labels=relative(labels, root))
            )
    return Found(root, splits) if splits else None


def _images(root: Path, split: Split) -> list[Path]:
    if not split.names:
        return files_below(root / split.images, IMAGE_SUFFIXES, 8)
    names = root / split.names
    return [names.parent / line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: no text in UTF-8: {error}") from error


def _class_number(text: str, where: str) -> int:
    if not text.isdecimal():
        raise DataError(f"{where}: a class is a number from 0, not {text!r}")
    return int(text)


def _objects(file: Path, size: tuple[int, int], num_classes: int) -> list[dict[str, Any]]:
    """The objects of a text file; where there is none, the image has none."""
    if not file.is_file():
        return []
    height, width = size
    objects = []
    for place, line in enumerate(_lines(file), 1):
        where = f"{file}: line {place}"
        first, *rest = line.split()
        number = _class_number(first, where)
        if number >= num_classes:
            raise DataError(
                f"{where}: class {number}, of which the last is {num_classes - 1}; add its name, or correct it"
            )
        if len(rest) in (4, 5):
            raise DataError(f"{where}: a box, no polygon: export the data for segmentation")
        try:
            values = [float(value) for value in rest]
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        if not all(-OUTSIDE <= value <= 1 + OUTSIDE for value in values):
            raise DataError(
                f"{where}: corners outside of 0..1; they are shares of the image's width and height, no pixels"
            )
        pixels = [value * (height if odd % 2 else width) for odd, value in enumerate(values)]
        objects.append(polygon_object(number, [pixels], size, where))
    return objects
