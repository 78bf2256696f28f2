"""Lists of class names that lie beside label maps, and the numbers or colours that they give them."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask2former.data.datasets.metadata import Category
from mask2former.data.images import DataError

_TEXTS = ("classes.txt", "class_names.txt", "names.txt", "labels.txt", "label_names.txt", "obj.names", "codes.txt",
          "label_colors.txt", "labelmap.txt", "label_map.txt")  # fmt: skip
_TABLES = ("_classes.csv", "class_dict.csv", "classes.csv", "labels.csv", "class_dict_seg.csv")
_JSONS = ("classes.json", "labels.json", "label_map.json", "palette.json")
_LINE = re.compile(r"(?:(?P<number>\d+)\s*[:,;\t ]\s*)?(?P<name>.*?)")
_COLOR_FIRST = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(?P<name>\D.*)")
_COLOR_LAST = re.compile(r"(?P<name>.*?\D)[\s,:]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})(?:::|:.*)?")


def find_names(folders: Sequence[Path]) -> tuple[list[Category], Path] | None:
    """The first list of classes in some folders: `name`, and where it says so `color` or `value`; and its file.

    Raises:
        DataError: a file that names no classes, or one twice.
    """
    for folder in folders:
        for names, read in ((_TABLES, _read_table), (_TEXTS, _read_text), (_JSONS, _read_json)):
            for name in names:
                path = folder / name
                if path.is_file():
                    return _checked(read(_text_of(path), path), path), path
    return None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8: {error}") from error


def _checked(classes: list[Category], path: Path) -> list[Category]:
    names = [item["name"] for item in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice or not all(names):
        problem = (
            f"names {twice[0]!r} twice" if twice else "names no classes" if not names else "has a class without name"
        )
        raise DataError(f"{path}: {problem}; a list has one class in a line")
    return classes


def _read_text(text: str, path: Path) -> list[Category]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    matches = [_COLOR_FIRST.fullmatch(line) or _COLOR_LAST.fullmatch(line) for line in lines]
    if lines and all(matches):
        return [{"name": m["name"].strip(), "color": _color(m.groups(), m["name"], path)} for m in matches if m]
    records = [_LINE.fullmatch(line) for line in lines]
    numbers = [int(m["number"]) for m in records if m and m["number"] is not None]
    if len(numbers) == len(lines) and len(set(numbers)) == len(numbers):
        return [{"name": m["name"].strip(), "value": int(m["number"])} for m in records if m]
    return [{"name": line} for line in lines]


def _color(groups: Sequence[Any], name: str, path: Path) -> list[int]:
    color = [int(group) for group in groups if group != name]
    if max(color) > 255:
        raise DataError(f"{path}: {name.strip()!r} has the colour {color}; the parts of a colour are within 0..255")
    return color


def _read_table(text: str, path: Path) -> list[Category]:
    """A table with a line of headings: name and r, g, b, or name and a pixel value as Roboflow's `_classes.csv`."""
    rows = [
        [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)
    ]
    heads = [cell.lower() for cell in rows[0]] if rows else []
    name = next((heads.index(head) for head in ("name", "class", "label", "class_name") if head in heads), None)
    value = next((heads.index(head) for head in ("pixel value", "value", "index", "id") if head in heads), None)
    colors = [heads.index(head) for head in ("r", "g", "b") if head in heads]
    try:
        if name is None or (len(colors) != 3 and value is None):
            raise ValueError("its first line must name the columns name, r, g, b or name, value")
        if len(colors) == 3:
            return [{"name": row[name], "color": [int(row[place]) for place in colors]} for row in rows[1:]]
        assert value is not None
        return [{"name": row[name], "value": int(row[value])} for row in rows[1:]]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: no table of classes: {error}") from error


def _read_json(text: str, path: Path) -> list[Category]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if isinstance(content, dict):
        content = [{"name": name, **_given(value)} for name, value in content.items()]
    if not isinstance(content, list):
        raise DataError(f"{path}: no list of names or of records with name and color")
    classes = [{"name": item} if isinstance(item, str) else item for item in content]
    for item in classes:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not _is_color(item.get("color")):
            raise DataError(f"{path}: {str(item)[:100]} is no name and no record of name and color")
    return [{key: item[key] for key in ("name", "color", "value") if key in item} for item in classes]


def _given(value: Any) -> dict[str, Any]:
    return {"color": value} if isinstance(value, list) else {"value": value} if type(value) is int else {}


def _is_color(color: Any) -> bool:
    return color is None or (
        isinstance(color, list) and len(color) == 3 and all(type(part) is int and 0 <= part < 256 for part in color)
    )
