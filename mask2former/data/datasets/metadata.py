"""What the catalog knows of a data set's classes: names, colours, and the map from file ids to class indices.

A *category* is COCO's record: `id` as in the files, `name`, for panoptic sets `isthing` (0 or 1), optionally
`color` (R, G, B). A *contiguous id* is the index of a class in the model's output.
"""

import colorsys
import json
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from mask2former.d2.data import DatasetCatalog, Metadata, MetadataCatalog
from mask2former.data.images import DataError

Category = dict[str, Any]
PathLike = str | os.PathLike[str]
CLASS_KEYS = (
    *("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"),
    *("stuff_classes", "stuff_colors", "stuff_dataset_id_to_contiguous_id", "ignore_label"),
)
"""The metadata that says which classes a set has; the rest is about its files."""
DEFAULT_HINT = "set DETECTRON2_DATASETS to the folder that holds the data sets, or correct the path"


def load_categories(table: str) -> list[Category]:
    """The shipped table of that name, e.g. "coco_panoptic_133", in published order."""
    file = resources.files("mask2former.data.datasets") / "categories" / f"{table}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def things_first(categories: Sequence[Category]) -> list[Category]:
    """COCO's published order, whatever the order in a file: things by id, then stuff by id."""
    return sorted(categories, key=lambda category: (not category["isthing"], category["id"]))


def check_categories(categories: Sequence[Category], source: str, *, panoptic: bool) -> None:
    """Raises `DataError` for a record without the needed keys, an id given twice, or no categories at all.

    Args:
        source: file the categories are from, for the message.
    """
    if not categories:
        raise DataError(f"{source}: the list of categories is empty")
    needed = ("id", "name", "isthing") if panoptic else ("id", "name")
    seen: dict[int, str] = {}
    for category in categories:
        missing = [key for key in needed if key not in category]
        if missing:
            raise DataError(f"{source}: category {category} lacks {', '.join(missing)}")
        if category["id"] in seen:
            raise DataError(
                f"{source}: category id {category['id']} is given to both "
                f"{seen[category['id']]!r} and {category['name']!r}"
            )
        seen[category["id"]] = category["name"]


def panoptic_metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of a panoptic set, as published for COCO and ADE20K and as Detectron2's evaluators need it.

    `stuff_*` is about all classes, in the order given, and `thing_*` about things alone.
    """
    things = [category for category in categories if category["isthing"]]
    thing_names, thing_colors = _names_and_colors(things)
    return {
        "thing_classes": thing_names,
        "thing_colors": thing_colors,
        "thing_dataset_id_to_contiguous_id": _contiguous_ids(categories, things),
        "stuff_dataset_id_to_contiguous_id": _contiguous_ids(categories, categories),
        **semantic_metadata(categories),
    }


def unseparated_metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of a panoptic set as Detectron2 itself has it for COCO and Cityscapes.

    Both lists of names and colours hold all classes; each of the maps of ids is about things or stuff alone.
    """
    names, colors = _names_and_colors(categories)
    stuff = [category for category in categories if not category["isthing"]]
    return {
        **panoptic_metadata(categories),
        "thing_classes": names,
        "thing_colors": colors,
        "stuff_dataset_id_to_contiguous_id": _contiguous_ids(categories, stuff),
    }


def list_of_things(metadata: Metadata) -> str:
    """ "thing" or "stuff": of which of the lists `*_classes` and `*_colors` contiguous ids of things are indices.

    Those of ADE20K lie among all 150 classes, while its `thing_classes` are 100.
    """
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    return "thing" if max(ids.values(), default=-1) < len(metadata.get("thing_classes") or ()) else "stuff"


def instance_metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of an instance set, all of whose categories are things."""
    names, colors = _names_and_colors(categories)
    ids = _contiguous_ids(categories, categories)
    return {"thing_classes": names, "thing_colors": colors, "thing_dataset_id_to_contiguous_id": ids}


def semantic_metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of a semantic set; records need a `name` alone."""
    names, colors = _names_and_colors(categories)
    return {"stuff_classes": names, "stuff_colors": colors}


def categories_of(metadata: Metadata) -> list[Category]:
    """The classes that a set's metadata knows, in the model's order.

    Each has `name` and `isthing`, and as far as known `id`, as in the set's files, and `color`.
    """
    kind = "stuff" if metadata.get("stuff_classes") else "thing"
    names = metadata.get(f"{kind}_classes") or []
    colors = metadata.get(f"{kind}_colors") or []
    things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
    records: list[Category] = [{"name": name, "isthing": int(i in things)} for i, name in enumerate(names)]
    for record, color in zip(records, colors, strict=False):
        record["color"] = list(color)
    ids = dataset_ids(metadata)
    for index, record in enumerate(records):
        if index in ids:
            record["id"] = ids[index]
    return records


def dataset_ids(metadata: Metadata) -> dict[int, int]:
    """Index in the model's output → id in the files of a set, of the classes for which its metadata has one."""
    maps = (metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {} for kind in ("stuff", "thing"))
    return {index: id_ for ids in maps for id_, index in ids.items()}


def metadata_of(categories: Sequence[Category]) -> Metadata:
    """Metadata to draw with, of no registered set, from `categories_of` another."""
    known = {category["id"] for category in categories if "id" in category}
    ids = [category["id"] for category in categories] if len(known) == len(categories) else range(len(categories))
    records = [{**category, "id": id_} for category, id_ in zip(categories, ids, strict=True)]
    return Metadata(name="categories").set(**panoptic_metadata(records))


def dataset_metadata(name: str) -> Metadata:
    """Metadata of a registered set, complete: classes that stand in its files are read first if need be."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None and metadata.get("stuff_classes") is None:
        DatasetCatalog.get(name)
    return metadata


def is_free(name: str) -> bool:
    """Whether no data set has that name; where Detectron2 has registered it already, its entry stays."""
    return name not in DatasetCatalog.list()


def check_folder(path: PathLike, name: str, hint: str) -> None:
    """Raises `FileNotFoundError` unless `path` is a folder; `name` is the data set that reads it."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"no folder {os.path.abspath(path)}, which data set {name} reads; {hint}")


def first_few(values: Iterable[Any], count: int = 10) -> str:
    """A list for a message, cut short."""
    values = list(values)
    return ", ".join(map(str, values[:count])) + (f" and {len(values) - count} more" if len(values) > count else "")


def _names_and_colors(categories: Sequence[Category]) -> tuple[list[str], list[list[int]]]:
    colors = [category.get("color") or _palette(index) for index, category in enumerate(categories)]
    return [category["name"] for category in categories], colors


def _contiguous_ids(categories: Sequence[Category], of: Sequence[Category]) -> dict[int, int]:
    """Id in the files → index in `categories`, of some of these."""
    index = {category["id"]: number for number, category in enumerate(categories)}
    return {category["id"]: index[category["id"]] for category in of}


def _palette(index: int) -> list[int]:
    """A colour for a class without one; steps by the golden ratio keep neighbours apart in hue."""
    red_green_blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.85 - 0.25 * (index % 2), 0.95 - 0.15 * (index % 3))
    return [round(255 * value) for value in red_green_blue]
