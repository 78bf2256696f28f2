"""LabelMe's JSON files, one for each image, beside it.

https://github.com/wkentaro/labelme
"""

import base64
import binascii
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

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
from mask2former.data.layouts.objects import (
    Size,
    ellipse,
    image_record,
    mask_object,
    polygon_object,
    read_json,
    rectangle,
)
from mask2former.data.layouts.splits import Split, split_of

AREAS = ("polygon", "rectangle", "circle", "mask")
NO_CLASS = ("__ignore__", "_background_")


class LabelMe(Layout):
    """A JSON file with `shapes` for each image; those of one `group_id` and label are one object."""

    name, tasks, title = "labelme", (INSTANCE,), "LabelMe"

    def find(self, path: Path) -> Found | None:
        if not path.is_dir():
            return None
        splits: dict[str, Split] = {}
        for folder in folders_below(path):
            files = files_in(folder, ".json")
            if not files or not _is_labelme(read_json(files[0])):
                continue
            inner = folder.relative_to(path)
            name = split_of(inner)
            top = next(p for p in (*reversed(inner.parents), inner) if split_of(p) == name)
            splits.setdefault(name, Split(images=relative(path / top, path), annotations=relative(path / top, path)))
        return Found(path, splits) if splits else None

    def read_categories(self, found: Found, task: str) -> None:
        labels: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        files = [file for split in found.splits.values() for file in _files(found.root, split)]
        for file in files:
            for shape in _shapes(file):
                kind = shape.get("shape_type") or "polygon"
                kinds[kind] += 1
                labels[shape["label"]] += kind in AREAS
        for kind in sorted(set(kinds) - set(AREAS)):
            found.notes.append(f"{kinds[kind]} shapes of type {kind} have no area and are left out")
        if ignored := [label for label in NO_CLASS if labels.pop(label, 0)]:
            found.notes.append(f"shapes labelled {' and '.join(ignored)} are left out")
        found.categories = [{"name": label} for label in sorted(labels) if labels[label]]
        if not found.categories:
            raise DataError(f"{found.root}: no shape with an area has a label in {len(files)} files of LabelMe")
        images = sum(len(files_below(found.root / s.images, IMAGE_SUFFIXES, 8)) for s in found.splits.values())
        if images > len(files):
            found.notes.append(
                f"{images - len(files)} images have no JSON file: they are taken as not annotated, and left out"
            )

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        index = {category["name"]: number for number, category in enumerate(categories)}
        return [_record(file, root / split.annotations, index) for file in _files(root, split)]


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _files(root: Path, split: Split) -> list[Path]:
    return files_below(root / split.annotations, ".json", 8)


def _shapes(file: Path) -> list[dict[str, Any]]:
    content = read_json(file)
    if not _is_labelme(content):
        raise DataError(f"{file}: no file of LabelMe, which has shapes and imagePath; move it elsewhere")
    for place, shape in enumerate(content["shapes"], 1):
        if (
            not isinstance(shape, dict)
            or not isinstance(shape.get("label"), str)
            or not isinstance(shape.get("points"), list)
        ):
            raise DataError(f"{file}: shape {place} has no label or no points")
    return content["shapes"]


def _record(file: Path, root: Path, index: dict[str, int]) -> dict[str, Any]:
    content = read_json(file)
    shapes = _shapes(file)
    stated = (content.get("imageHeight"), content.get("imageWidth"))
    image = file.parent / PureWindowsPath(content["imagePath"]).as_posix()
    if not image.is_file():  # renamed or moved together
        image = next((p for s in IMAGE_SUFFIXES if (p := file.with_suffix(s)).is_file()), image)
    size = (int(stated[0]), int(stated[1])) if all(type(side) is int for side in stated) else None
    record = image_record(image, relative(file.with_suffix(""), root), size, str(file))
    size = (record["height"], record["width"])
    objects: dict[Any, dict[str, Any]] = {}
    for place, shape in enumerate(shapes, 1):
        kind, label, where = shape.get("shape_type") or "polygon", shape["label"], f"{file}: shape {place}"
        if kind not in AREAS or label in NO_CLASS:
            continue
        if label not in index:
            raise DataError(f"{where}: class {label!r}, which the description does not list; describe the data anew")
        group = shape.get("group_id")
        key = (label, group) if group is not None and kind != "mask" else place
        if kind == "mask":
            objects[key] = _mask(shape, index[label], size, where)
            continue
        polygons = objects[key]["segmentation"] if key in objects else []
        objects[key] = polygon_object(index[label], [*polygons, _polygon(kind, shape["points"], where)], size, where)
    record["annotations"] = list(objects.values())
    return record


def _polygon(kind: str, points: Any, where: str) -> list[float]:
    try:
        pairs = [(float(x), float(y)) for x, y in points]
        if kind == "polygon":
            return [number for pair in pairs for number in pair]
        (x0, y0), (x1, y1) = pairs
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: points of a {kind} that are none: {error}") from None
    if kind == "circle":  # its centre, and a point on it
        radius = math.hypot(x1 - x0, y1 - y0)
        return ellipse(x0, y0, radius, radius)
    return rectangle(x0, y0, x1, y1)


def _mask(shape: dict[str, Any], category: int, size: Size, where: str) -> dict[str, Any]:
    """A PNG of the pixels within a box, in base64; points are the first and the last pixel of the box."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True)), formats=("PNG",)) as image:
            mask = np.asarray(image.convert("L")) > 0
        left, top = (round(float(number)) for number in shape["points"][0])
    except (KeyError, ValueError, TypeError, IndexError, OSError, binascii.Error) as error:
        raise DataError(f"{where}: a mask that cannot be read: {error}") from None
    return mask_object(category, mask, size, where, (top, left))
