"""Pascal VOC's masks: label maps of classes, and of objects, of the images that a list names.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.datasets.metadata import Category, first_few
from mask2former.data.datasets.semantic import IMAGE_SUFFIXES
from mask2former.data.images import DataError, check_size, read_colors, read_label_map, read_size
from mask2former.data.labels import color_id
from mask2former.data.layouts.layout import (
    INSTANCE,
    SEMANTIC,
    Found,
    Layout,
    Records,
    files_in,
    folders_below,
    relative,
)
from mask2former.data.layouts.names import find_names
from mask2former.data.layouts.objects import image_record, mask_object
from mask2former.data.layouts.splits import TEST, TRAIN, VAL, Split
from mask2former.data.layouts.values import IGNORE, IGNORED, VOC_BORDER, Values, interpret, label_key, scan, voc_color

NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CLASSES, OBJECTS, LISTS = "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"


class Voc(Layout):
    """`JPEGImages`, `SegmentationClass`, for instances `SegmentationObject`, and lists in `ImageSets/Segmentation`."""

    name, tasks, title = "voc", (SEMANTIC, INSTANCE), "Pascal VOC masks"

    def find(self, path: Path) -> Found | None:
        if not path.is_dir():
            return None
        root = next((f for f in folders_below(path) if (f / CLASSES).is_dir() and (f / "JPEGImages").is_dir()), None)
        if root is None:
            return None
        splits: dict[str, Split] = {}
        for name in (TRAIN, VAL, TEST):
            if (root / LISTS / f"{name}.txt").is_file():
                splits[name] = Split(images="JPEGImages", labels=CLASSES, names=f"{LISTS}/{name}.txt")
        if TEST in splits and not all(
            (root / CLASSES / f"{name}.png").is_file() for name in _names(root, splits[TEST])
        ):
            splits[TEST] = replace(splits[TEST], labels="")
        lists = files_in(root / LISTS, ".txt") if not splits and (root / LISTS).is_dir() else []
        if len(lists) == 1:
            splits[""] = Split(images="JPEGImages", labels=CLASSES, names=relative(lists[0], root))
        return Found(root, splits or {"": Split(images="JPEGImages", labels=CLASSES)})

    def read_categories(self, found: Found, task: str) -> None:
        labelled = [split for split in found.splits.values() if split.labels]
        files = [found.root / CLASSES / f"{name}.png" for split in labelled for name in _names(found.root, split)]
        if missing := [file for file in files if not file.is_file()]:
            raise DataError(f"{len(missing)} label maps that lists of {LISTS} name are missing: {first_few(missing)}")
        values = scan(list(map(str, files)))
        named = find_names([found.root])
        if named is None and re.search(r"VOC20\d\d", str(found.root)):
            found.categories = interpret(values, _own_names(values), "Pascal VOC", found.notes)
        else:
            names, source = named or (None, "")
            found.categories = interpret(values, names, str(source), found.notes)
        if task == INSTANCE:
            if not (found.root / OBJECTS).is_dir():
                raise DataError(f"{found.root}: no folder {OBJECTS}, which tells objects apart; use task semantic")
            found.notes.append("label 0 is the background, no class of instances")
            found.categories = [
                c for c in found.categories if c["value"] not in (0, "#000000") and c["name"] not in IGNORED
            ]

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        key, classes = label_key(categories)
        records: Records = []
        for name in _names(root, split):
            image = next((p for s in IMAGE_SUFFIXES if (p := root / split.images / f"{name}{s}").is_file()), None)
            record = image_record(image or root / split.images / f"{name}.jpg", name, None, split.names or str(root))
            records.append(record)
            if not split.labels:
                continue
            labels = str(root / split.labels / f"{name}.png")
            size = (record["height"], record["width"])
            check_size(labels, read_size(labels), size, record["file_name"])
            if task == SEMANTIC:
                record |= {"sem_seg_file_name": labels, key: dict(classes)}
            else:
                read = read_colors if key == "sem_seg_colors" else read_label_map
                record["annotations"] = _objects(root / OBJECTS / f"{name}.png", labels, classes, read)
        return records


def _names(root: Path, split: Split) -> list[str]:
    """The images of a split, by name without suffix."""
    if not split.names:
        return [file.stem for file in files_in(root / split.labels, ".png")]
    lines = (root / split.names).read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _own_names(values: Values) -> list[Category]:
    """VOC's classes, by colour or by number."""
    if not values.is_color:
        return [{"name": name, "value": number} for number, name in enumerate(NAMES)]
    classes = [{"name": name, "color": list(voc_color(number))} for number, name in enumerate(NAMES)]
    return [*classes, {"name": IGNORE, "color": list(bytes.fromhex(VOC_BORDER[1:]))}]


def _objects(
    file: Path, labels: str, classes: dict[int, int], read: Callable[[str], np.ndarray]
) -> list[dict[str, Any]]:
    """The objects of an image, each of the class that most of its pixels have."""
    if not file.is_file():
        raise DataError(f"there is no label map of objects {file}; add it, or use task semantic")
    objects, pixels = read(str(file)), read(labels)
    check_size(file, objects.shape, pixels.shape, labels)
    result = []
    for number in sorted({*np.unique(objects).tolist()} - {0, 255, color_id(VOC_BORDER)}):
        mask = objects == number
        values, counts = np.unique(pixels[mask], return_counts=True)
        value = int(values[counts.argmax()])
        where = f"{file}: object {number}"
        if value not in classes:
            raise DataError(f"{where}: most of it lies on label {value} of {labels}, which is no class of objects")
        result.append(mask_object(classes[value], mask, (mask.shape[0], mask.shape[1]), where))
    return result
