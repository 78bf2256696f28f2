"""VGG Image Annotator's JSON: its project file, or the annotations exported from it; versions 1 and 2.

https://www.robots.ox.ac.uk/~vgg/software/via/
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former.data.datasets.metadata import Category, first_few
from mask2former.data.images import DataError
from mask2former.data.layouts.layout import INSTANCE, Found, Layout, Records, files_below, image_folder, relative
from mask2former.data.layouts.objects import ellipse, image_record, polygon_object, read_json, rectangle
from mask2former.data.layouts.splits import Split, split_of

CLASS_KEYS = ("class", "label", "name", "type", "category", "class_name", "object")
"""Attributes of regions that tell the class, the first that is used."""
NO_AREA = ("point", "polyline")
MANY = 20
"""More JSON files than this in one folder are one for each image, of another tool."""


class Via(Layout):
    """One JSON file for each split, beside its images; an attribute of regions tells the class."""

    name, tasks, title = "via", (INSTANCE,), "VGG Image Annotator"

    def find(self, path: Path) -> Found | None:
        root = path if path.is_dir() else path.parent
        files = files_below(path, ".json") if path.is_dir() else [path] if path.suffix.lower() == ".json" else []
        counts = Counter(file.parent for file in files)
        splits: dict[str, Split] = {}
        for file in (file for file in files if counts[file.parent] <= MANY):
            entries = _entries(read_json(file))
            if entries is None:
                continue
            name = split_of(relative(file, root)) if path.is_dir() else ""
            if name in splits:
                raise DataError(
                    f"{root}: {splits[name].annotations} and {relative(file, root)} are both for "
                    f"{name or 'no split that their names tell'}; keep the project's or the exported file alone"
                )
            images = image_folder([entry["filename"] for entry in entries], root, file.parent, str(file), name)
            splits[name] = Split(images=relative(images, root), annotations=relative(file, root))
        return Found(root, splits) if splits else None

    def read_categories(self, found: Found, task: str) -> None:
        names: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        for split in found.splits.values():
            for _, shape, attributes, where in _regions(found.root / split.annotations):
                if shape.get("name") in NO_AREA:
                    left_out[shape["name"]] += 1
                else:
                    names[_class_of(attributes, where)] += 1
        found.notes += [
            f"{count} shapes of type {kind} have no area and are left out" for kind, count in left_out.items()
        ]
        if not names:
            raise DataError(
                f"{found.root}: no region with an area in {first_few(s.annotations for s in found.splits.values())}"
            )
        found.categories = [{"name": name} for name in sorted(names)]

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        index = {category["name"]: number for number, category in enumerate(categories)}
        file = root / split.annotations
        records: dict[str, dict[str, Any]] = {}
        for entry in _entries(read_json(file)) or ():
            name = entry["filename"]
            if name in records:
                raise DataError(f"{file}: {name} is listed twice; keep one of the entries")
            records[name] = image_record(root / split.images / name, name.rpartition(".")[0], None, str(file))
            records[name]["annotations"] = []
        for name, shape, attributes, where in _regions(file):
            if shape.get("name") in NO_AREA:
                continue
            label = _class_of(attributes, where)
            if label not in index:
                raise DataError(
                    f"{where}: class {label!r}, which the description does not list; describe the data anew"
                )
            record = records[name]
            size = (record["height"], record["width"])
            record["annotations"].append(polygon_object(index[label], [_polygon(shape, where)], size, where))
        return list(records.values())


def _entries(content: Any) -> list[dict[str, Any]] | None:
    """The images of a project or an export, None of any other JSON."""
    if not isinstance(content, dict):
        return None
    entries = list(content.get("_via_img_metadata", content).values())
    if not entries or not all(
        isinstance(e, dict) and isinstance(e.get("filename"), str) and "regions" in e for e in entries
    ):
        return None
    return entries


def _regions(file: Path) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any], str]]:
    """Image, shape and attributes of each region, and words that name it."""
    for entry in _entries(read_json(file)) or ():
        regions = entry["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        for place, region in enumerate(regions, 1):
            where = f"{file}: region {place} of {entry['filename']}"
            shape, attributes = region.get("shape_attributes"), region.get("region_attributes") or {}
            if not isinstance(shape, dict) or not isinstance(attributes, dict):
                raise DataError(f"{where}: has no shape_attributes")
            yield entry["filename"], shape, attributes, where


def _class_of(attributes: Mapping[str, Any], where: str) -> str:
    """The class of a region; without attributes all are of one class, `object`."""
    used = {key: value for key, value in attributes.items() if value not in ("", None, {})}
    key = next((key for key in CLASS_KEYS if key in used), next(iter(used), None))
    if key is None and attributes:
        raise DataError(f"{where}: no class: its attributes {first_few(attributes)} are empty")
    value = used[key] if key is not None else "object"
    if isinstance(value, dict):  # checkboxes
        chosen = [name for name, is_set in value.items() if is_set]
        if len(chosen) != 1:
            raise DataError(f"{where}: {key} names {len(chosen)} classes; a region has one")
        value = chosen[0]
    return str(value)


def _polygon(shape: Mapping[str, Any], where: str) -> list[float]:
    kind = shape.get("name")
    try:
        if kind == "polygon":
            points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
            return [float(number) for point in points for number in point]
        if kind == "rect":
            x, y = float(shape["x"]), float(shape["y"])
            return rectangle(x, y, x + float(shape["width"]), y + float(shape["height"]))
        if kind == "circle":
            return ellipse(float(shape["cx"]), float(shape["cy"]), float(shape["r"]), float(shape["r"]))
        if kind == "ellipse":
            x, y, rx, ry = (float(shape[key]) for key in ("cx", "cy", "rx", "ry"))
            return ellipse(x, y, rx, ry, math.degrees(float(shape.get("theta", 0))))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{where}: a {kind} that lacks or contradicts itself in {error}") from None
    raise DataError(f"{where}: a shape of type {kind!r}; there are polygon, rect, circle, ellipse, polyline and point")
