"""COCO's JSON files: instances, and panoptic ones with their PNGs."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mask2former.data.datasets.coco import instance_dicts, panoptic_dicts
from mask2former.data.datasets.coco_json import images_by_id, read_annotations
from mask2former.data.datasets.metadata import Category, check_categories, first_few, things_first
from mask2former.data.images import DataError
from mask2former.data.layouts.layout import (
    INSTANCE,
    PANOPTIC,
    Found,
    Layout,
    Records,
    check_images,
    files_below,
    image_folder,
    relative,
)
from mask2former.data.layouts.splits import Split, split_of

MANY = 20
"""More JSON files than this in one folder are one for each image, of another tool."""
_FOLDERS = ("annotations", "annotation", "labels")  # of files whose images lie beside their folder
_OTHERS = ("captions", "person_keypoints", "image_info", "stuff", "keypoints")


class CocoInstances(Layout):
    """A JSON file of instance annotations for each split, beside or above its images."""

    name, tasks, title = "coco_instances", (INSTANCE,), "COCO instance JSON"

    def find(self, path: Path) -> Found | None:
        return _find(path, panoptic=False)

    def read_categories(self, found: Found, task: str) -> None:
        contents = _contents(found)
        found.categories = _merged(contents, found.notes, panoptic=False)

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        source = str(root / split.annotations)
        content = _read(source)
        records = instance_dicts(
            content, source, image_root=root / split.images, contiguous_ids=_indices(content, categories, source)
        )
        for record in records:
            for place, annotation in enumerate(record.get("annotations", ()), 1):
                if not len(annotation["segmentation"]):
                    raise DataError(
                        f"{source}: object {place} of {record['file_name']} has polygons of fewer than three points "
                        "alone; complete or delete it"
                    )
        check_images(records, source)
        return records


class CocoPanoptic(Layout):
    """A panoptic JSON file for each split, with a folder of PNGs, beside or above its images."""

    name, tasks, title = "coco_panoptic", (PANOPTIC,), "COCO panoptic"

    def find(self, path: Path) -> Found | None:
        return _find(path, panoptic=True)

    def read_categories(self, found: Found, task: str) -> None:
        found.categories = things_first(_merged(_contents(found), found.notes, panoptic=True))

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        source = str(root / split.annotations)
        content = _read(source)
        indices = _indices(content, categories, source)
        things = {key: index for key, index in indices.items() if categories[index]["isthing"]}
        records = panoptic_dicts(
            content,
            source,
            image_root=root / split.images,
            panoptic_root=root / split.labels if split.labels else None,
            metadata={
                "thing_dataset_id_to_contiguous_id": things,
                "stuff_dataset_id_to_contiguous_id": {k: index for k, index in indices.items() if k not in things},
            },
        )
        check_images(records, source)
        return records


def _find(path: Path, *, panoptic: bool) -> Found | None:
    root = path if path.is_dir() else path.parent.parent if path.parent.name.lower() in _FOLDERS else path.parent
    files, notes = _candidates(path)
    splits: dict[str, Split] = {}
    for file in files:
        if file.name.lower().startswith(_OTHERS):
            notes.append(f"{relative(file, root)} holds no masks of objects")
            continue
        content = _peek(file)
        if content is None or _is_panoptic(content) != panoptic:
            continue
        told = split_of(relative(file, root))
        name = told if path.is_dir() else ""
        if name in splits:
            raise DataError(
                f"{root}: {splits[name].annotations} and {relative(file, root)} are both for "
                f"{name or 'no split that their names tell'}; give one file, or have `train` and `val` in their names"
            )
        splits[name] = _split(file, content, root, told, panoptic=panoptic)
    return Found(root, splits, notes=notes) if splits else None


def _candidates(path: Path) -> tuple[list[Path], list[str]]:
    if path.is_file():
        return ([path] if path.suffix.lower() == ".json" else []), []
    files = files_below(path, ".json")
    counts = Counter(file.parent for file in files)
    return [file for file in files if counts[file.parent] <= MANY], []


def _split(file: Path, content: dict[str, Any], root: Path, name: str, *, panoptic: bool) -> Split:
    names = [image["file_name"] for image in images_by_id(content, str(file)).values()]
    images = image_folder(names, root, file.parent, str(file), name)
    labels = ""
    if panoptic and "annotations" in content:
        pngs = [annotation["file_name"] for annotation in content["annotations"]]
        own = file.with_suffix("")  # as COCO names the folder of PNGs
        labels = relative(image_folder(pngs, root, own if own.is_dir() else file.parent, str(file), name), root)
    return Split(images=relative(images, root), annotations=relative(file, root), labels=labels)


def _peek(file: Path) -> dict[str, Any] | None:
    """The content of a COCO file, None of any other JSON."""
    try:
        content = _read(str(file))
    except DataError as error:
        if "not valid JSON" in str(error):
            raise
        return None
    return content


def _is_panoptic(content: dict[str, Any]) -> bool:
    return any("segments_info" in annotation for annotation in content.get("annotations", [])[:1])


def _read(path: str) -> dict[str, Any]:
    return _read_cached(path, os.stat(path).st_mtime_ns if os.path.isfile(path) else 0)


@lru_cache(maxsize=3)
def _read_cached(path: str, changed: int) -> dict[str, Any]:
    """A file is asked for several times while it is described. Categories without name have their supercategory's."""
    content = read_annotations(path, "correct the path", labelled=False)
    for category in content["categories"]:
        if "name" not in category and isinstance(category.get("supercategory"), str):
            category["name"] = category["supercategory"]
    return content


def _contents(found: Found) -> dict[str, dict[str, Any]]:
    paths = [str(found.root / split.annotations) for split in found.splits.values()]
    return {path: _read(path) for path in dict.fromkeys(paths)}


def _merged(contents: dict[str, dict[str, Any]], notes: list[str], *, panoptic: bool) -> list[Category]:
    """The categories of all files, by name; those of the first file by id, then what others add."""
    merged: dict[str, Category] = {}
    used: Counter[str] = Counter()
    for path, content in contents.items():
        check_categories(content["categories"], path, panoptic=panoptic)
        names = {category["id"]: category["name"] for category in content["categories"]}
        for annotation in content.get("annotations", ()):
            for item in annotation.get("segments_info", [annotation]):
                used[names.get(item.get("category_id"), "")] += 1
        for category in sorted(content["categories"], key=lambda category: category["id"]):
            known = merged.setdefault(category["name"], category)
            if known.get("isthing") != category.get("isthing"):
                raise DataError(f"{path}: {category['name']!r} is a thing in one place and stuff in another")
    parents = {category.get("supercategory") for category in merged.values()}
    holders = [name for name, item in merged.items() if not used[name] and name in parents and _is_top(item)]
    if holders and len(holders) < len(merged):
        notes.append(f"{first_few(holders)}: a name for a group of classes alone, as Roboflow writes it, is no class")
        merged = {name: category for name, category in merged.items() if name not in holders}
    keys = ("id", "name", *(("isthing",) if panoptic else ()), "color")
    numbered = len({category["id"] for category in merged.values()}) == len(merged)
    return [
        {key: category[key] for key in keys if key in category} | ({} if numbered else {"id": number})
        for number, category in enumerate(merged.values(), 1)
    ]


def _is_top(category: Category) -> bool:
    return category.get("supercategory") in (None, "", "none", category["name"])


def _indices(content: dict[str, Any], categories: Sequence[Category], source: str) -> dict[int, int]:
    """Category id in a file → index of the category of that name."""
    check_categories(content["categories"], source, panoptic=False)
    index = {category["name"]: number for number, category in enumerate(categories)}
    return {c["id"]: index[c["name"]] for c in content["categories"] if c["name"] in index}
