"""From the classes in the files to those of the model: left out, merged and renamed by one mapping."""

from collections.abc import Mapping, Sequence
from typing import Any

from mask2former.data.datasets.metadata import Category, first_few
from mask2former.data.images import DataError
from mask2former.similar import did_you_mean

ClassMapping = Mapping[str, Sequence[str]]
"""Name of a class of the model → names of the classes in the files that it stands for."""


def parse_mapping(value: Any, source: str) -> dict[str, tuple[str, ...]]:
    """The mapping of a data description: a list of names to keep, or `new name: name` and `new name: [name, name]`.

    Raises:
        DataError: something else, or an empty one.
    """
    if isinstance(value, list):
        value = {name: name for name in value} if all(isinstance(name, str) for name in value) else None
    mapping = {}
    for name, names in value.items() if isinstance(value, Mapping) else ():
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(item, str) for item in names):
            raise DataError(f"{source}: classes: {name!r} stands for no name or list of names, but for {names!r}")
        mapping[name] = tuple(names)
    if not mapping:
        raise DataError(f"{source}: classes is no list of names and no mapping `name: name` or `name: [name, name]`")
    return mapping


def check_mapping(mapping: ClassMapping, categories: Sequence[Category], source: str) -> None:
    """Raises `DataError` for a name that no category has, or that two classes claim."""
    known = [category["name"] for category in categories]
    owner: dict[str, str] = {}
    for name, names in mapping.items():
        for item in names:
            if item not in known:
                hint = did_you_mean(item, known) or f"; there are {first_few(known)}"
                raise DataError(
                    f"{source}: classes: {name!r} stands for {item!r}, which is no class in the files{hint}"
                )
            if item in owner:
                raise DataError(f"{source}: classes: {item!r} belongs to both {owner[item]!r} and {name!r}")
            owner[item] = name


def class_table(mapping: ClassMapping, categories: Sequence[Category]) -> list[int | None]:
    """Of each category the number of its class of the model; None where it is left out."""
    number = {item: index for index, names in enumerate(mapping.values()) for item in names}
    return [number.get(category["name"]) for category in categories]


def model_classes(mapping: ClassMapping, categories: Sequence[Category], source: str) -> list[Category]:
    """The classes of the model, in order: `id` and colour are those of the first category of each.

    Raises:
        DataError: a class of both things and stuff.
    """
    by_name = {category["name"]: category for category in categories}
    result = []
    for name, names in mapping.items():
        members = [by_name[item] for item in names]
        if len({bool(member.get("isthing", 1)) for member in members}) > 1:
            raise DataError(f"{source}: classes: {name!r} is made of things and stuff ({first_few(names)})")
        result.append({**members[0], "name": name})
    return result


def renumber(records: Sequence[dict[str, Any]], table: Sequence[int | None], ignore_label: int) -> None:
    """Turn indices of categories in dataset dicts into classes of the model, in place.

    Objects of classes that are left out go; their panoptic segments become void, their pixels in label maps
    `ignore_label`.
    """
    for record in records:
        if "annotations" in record:
            record["annotations"] = _renumbered(record["annotations"], table)
        if "segments_info" in record:
            void = [s["id"] for s in record["segments_info"] if table[s["category_id"]] is None]
            record["segments_info"] = _renumbered(record["segments_info"], table)
            if void:
                record["void_segments"] = void
        for key in ("sem_seg_values", "sem_seg_colors"):
            if key in record:
                classes = {value: table[index] for value, index in record[key].items()}
                record[key] = {value: ignore_label if c is None else c for value, c in classes.items()}


def _renumbered(items: Sequence[Mapping[str, Any]], table: Sequence[int | None]) -> list[dict[str, Any]]:
    return [
        {**item, "category_id": table[item["category_id"]]} for item in items if table[item["category_id"]] is not None
    ]
