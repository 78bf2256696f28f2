"""CVAT's XML, "CVAT for images 1.1": one file for all images, with shapes in pixels.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from mask2former.data.datasets.metadata import Category
from mask2former.data.images import DataError
from mask2former.data.layouts.layout import INSTANCE, Found, Layout, Records, files_below, image_folder, relative
from mask2former.data.layouts.objects import (
    Size,
    ellipse,
    image_record,
    mask_object,
    polygon_object,
    read_xml,
    rectangle,
)
from mask2former.data.layouts.splits import Split, split_of

AREAS = ("polygon", "box", "ellipse", "mask")
MANY = 20
"""XML files that are looked into; more are one for each image, of another tool."""
NO_AREA = ("polyline", "points", "cuboid", "skeleton")


class Cvat(Layout):
    """`annotations.xml` beside or above its images; `subset` of images, or else the file's path, tells the split.

    Polygons of one label and one `group_id` are one object.
    """

    name, tasks, title = "cvat", (INSTANCE,), "CVAT for images"

    def find(self, path: Path) -> Found | None:
        root = path if path.is_dir() else path.parent
        files = files_below(path, ".xml") if path.is_dir() else [path] if path.suffix.lower() == ".xml" else []
        splits: dict[str, Split] = {}
        for file in files[:MANY]:
            content = read_xml(file)
            if content.tag != "annotations" or content.find("image") is None:
                continue
            images = content.findall("image")
            for subset in dict.fromkeys(image.get("subset", "") for image in images):
                name = split_of(subset or relative(file, root)) if path.is_dir() or subset else ""
                names = [_attribute(i, "name", str(file)) for i in images if i.get("subset", "") == subset]
                if name in splits:
                    both = f"{splits[name].annotations} and {relative(file, root)}"
                    raise DataError(f"{root}: {both} are both for {name or 'no split that names tell'}; keep one")
                folder = image_folder(names, root, file.parent, str(file), name)
                splits[name] = Split(images=relative(folder, root), annotations=relative(file, root), subset=subset)
        return Found(root, splits) if splits else None

    def read_categories(self, found: Found, task: str) -> None:
        names: dict[str, None] = {}
        left_out: Counter[str] = Counter()
        for path in dict.fromkeys(found.root / split.annotations for split in found.splits.values()):
            content = read_xml(path)
            listed = [label.findtext("name", "") for label in content.iter("label") if label.find("name") is not None]
            names.update(dict.fromkeys(listed))
            for image in content.findall("image"):
                left_out.update(shape.tag for shape in image if shape.tag in NO_AREA)
                if not listed:
                    names.update(dict.fromkeys(shape.get("label", "") for shape in image if shape.tag in AREAS))
        found.notes += [
            f"{count} shapes of type {kind} have no area and are left out" for kind, count in left_out.items()
        ]
        if not names:
            raise DataError(f"{found.root}: CVAT's file names no labels")
        found.categories = [{"name": name} for name in names]

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        index = {category["name"]: number for number, category in enumerate(categories)}
        file = root / split.annotations
        images = [image for image in read_xml(file).findall("image") if image.get("subset", "") == split.subset]
        return [_record(image, root / split.images, index, str(file)) for image in images]


def _record(image: Element, folder: Path, index: dict[str, int], source: str) -> dict[str, Any]:
    name = _attribute(image, "name", source)
    size = (int(_number(image, "height", source)), int(_number(image, "width", source)))
    record = image_record(folder / name, Path(name).with_suffix("").as_posix(), size, source)
    objects: dict[Any, dict[str, Any]] = {}
    for place, shape in enumerate(image, 1):
        if shape.tag not in AREAS:
            continue
        where = f"{source}: shape {place} of {name}"
        label, group = _attribute(shape, "label", where), shape.get("group_id", "0")
        if label not in index:
            raise DataError(f"{where}: unknown label {label!r}; there are {', '.join(index)}")
        if shape.tag == "mask":
            objects[place] = _mask(shape, index[label], size, where)
            continue
        key = (label, group) if group not in ("", "0") else place
        polygons = objects[key]["segmentation"] if key in objects else []
        objects[key] = polygon_object(index[label], [*polygons, _polygon(shape, where)], size, where)
    record["annotations"] = list(objects.values())
    return record


def _attribute(element: Element, name: str, where: str) -> str:
    value = element.get(name)
    if value is None:
        raise DataError(f"{where}: {element.tag} has no {name}")
    return value


def _number(element: Element, name: str, where: str) -> float:
    value = _attribute(element, name, where)
    try:
        return float(value)
    except ValueError:
        raise DataError(f"{where}: {name} of {element.tag} is {value!r}, no number") from None


def _polygon(shape: Element, where: str) -> list[float]:
    if shape.tag == "polygon":
        try:
            pairs = [pair.split(",") for pair in _attribute(shape, "points", where).split(";") if pair]
            return [float(number) for x, y in pairs for number in (x, y)]
        except ValueError as error:
            raise DataError(f"{where}: points that are none: {error}") from None
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number(shape, name, where) for name in ("cx", "cy", "rx", "ry"))
        return ellipse(x, y, rx, ry, float(shape.get("rotation", "0")))
    left, top, right, bottom = (_number(shape, name, where) for name in ("xtl", "ytl", "xbr", "ybr"))
    if float(shape.get("rotation", "0")):
        x, y, degrees = (left + right) / 2, (top + bottom) / 2, float(shape.get("rotation", "0"))
        return _turned(rectangle(left, top, right, bottom), x, y, degrees)
    return rectangle(left, top, right, bottom)


def _turned(polygon: Sequence[float], x: float, y: float, degrees: float) -> list[float]:
    """A polygon turned clockwise, as images are shown, around (x, y)."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = (np.reshape(polygon, (-1, 2)) - (x, y)) @ turn + (x, y)
    return corners.round(6).ravel().tolist()


def _mask(shape: Element, category: int, size: Size, where: str) -> dict[str, Any]:
    """Run lengths within a box, row by row, of pixels outside and inside in turn."""
    left, top, width, height = (int(_number(shape, name, where)) for name in ("left", "top", "width", "height"))
    try:
        runs = [int(run) for run in _attribute(shape, "rle", where).split(",")]
        if min(runs) < 0 or sum(runs) != width * height:
            raise ValueError(f"run lengths that do not add up to its {width}x{height} pixels")
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return mask_object(category, inside, size, where, (top, left))
