"""What the numbers or colours in label maps mean: found by reading all of them, and a list of names if there is one."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mask2former.data.datasets.metadata import Category, first_few
from mask2former.data.images import GREY, DataError, read_label_values, read_palette
from mask2former.data.labels import color_id, color_text

MOST_COLORS = 256
IGNORE = "ignore"
"""The name of what is no class."""
IGNORED = (IGNORE, "ignored", "void", "unlabeled", "unlabelled")
"""Such names in a list mean the same."""
VOC_BORDER = "#e0e0c0"
"""Of Pascal VOC's coloured label maps: between objects, where nothing is learnt."""
_FEW = 8
"""Grey levels below this are numbers of classes even where most do not occur."""


@dataclass(frozen=True)
class Values:
    """What occurs in some label maps.

    Attributes:
        is_color: whether they are colours, as R + 256 G + 256² B; else grey levels or palette indices.
        found: the values, in order, and for each the first file that has it.
        palette: (n, 3) colours of the indices, where the files have a palette.
    """

    is_color: bool
    found: Mapping[int, str]
    palette: np.ndarray | None = None


def scan(paths: Sequence[str]) -> Values:
    """Reads label maps.

    Raises:
        DataError: more colours than classes can have; files of colours among such with a palette.
    """
    found: dict[str, dict[int, str]] = {"grey": {}, "palette": {}, "color": {}}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, (values, kind) in zip(paths, pool.map(_look, paths), strict=True):
            for value in values:
                found[kind].setdefault(value, path)
            if len(found["color"]) > MOST_COLORS:
                raise DataError(
                    f"{path}: with it, label maps have more than {MOST_COLORS} colours: they are photos, or smoothed "
                    "at edges. Save label maps as PNG, without smoothing and without compression of JPEG"
                )
    if found["color"] and found["palette"]:
        raise DataError(
            f"{_first(found['palette'])} has a palette and {_first(found['color'])} RGB colours; save all label maps "
            "in one way"
        )
    if found["color"]:
        greys = {value * GREY: path for value, path in found["grey"].items()}
        return Values(True, {**greys, **found["color"]})
    palette = read_palette(_first(found["palette"])) if found["palette"] else None
    return Values(False, dict(sorted({**found["grey"], **found["palette"]}.items())), palette)


def _look(path: str) -> tuple[list[int], str]:
    values, kind = read_label_values(path)
    flat = values.ravel()
    runs = flat[np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1]]
    return np.unique(runs).tolist(), kind


def _first(files: Mapping[int, str]) -> str:
    return next(iter(files.values()))


def voc_color(index: int) -> tuple[int, int, int]:
    """Pascal VOC's colour of a label: its bits, the lowest first, are the highest of red, green and blue in turn."""
    color = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            color[channel] |= (index >> 3 * place + channel & 1) << 7 - place
    return color[0], color[1], color[2]


def interpret(values: Values, names: Sequence[Category] | None, source: str, notes: list[str]) -> list[Category]:
    """The classes of label maps, each with its `value`: a number, or "#rrggbb". One named as `IGNORED` is none.

    Args:
        names: of a list, with `color` or `value` where it gives them.
        source: file of that list.

    Raises:
        DataError: values that the list does not account for.
    """
    if values.is_color:
        return _of_colors(values, names, source, notes)
    if names is None:
        return _with_palette(_unnamed(values, notes), values.palette)
    levels = _levels(names)
    if levels is not None and set(values.found) <= set(levels):
        return [{**item, "value": level} for item, level in zip(names, levels, strict=True)]
    indices = _palette_indices(names, values.palette)
    if indices is not None:
        names = [{**item, "value": index} for item, index in zip(names, indices, strict=True)]
    if all("value" in item for item in names):
        categories = list(names)
    else:
        categories = _numbered(values, [{**item} for item in names], source, notes)
    return _with_palette(_with_ignore(values, categories, source, notes), values.palette)


def label_key(categories: Sequence[Category]) -> tuple[str, dict[int, int]]:
    """The entry of dataset dicts that tells the meaning of label maps, and what it holds: the class of each value.

    Raises:
        DataError: no category has a value, or two have the same.
    """
    given = {number: category["value"] for number, category in enumerate(categories) if "value" in category}
    if not given or not all(type(value) is int or isinstance(value, str) for value in given.values()):
        raise DataError("`categories` of label maps need a `value`: a number, or a colour '#rrggbb'")
    is_color = any(isinstance(value, str) for value in given.values())
    classes: dict[int, int] = {}
    for number, value in given.items():
        key = color_id(value) if isinstance(value, str) else value * (GREY if is_color else 1)
        if key in classes:
            raise DataError(f"two of `categories` have the value {value}; merge them under `classes`")
        classes[key] = number
    return "sem_seg_colors" if is_color else "sem_seg_values", classes


def _levels(names: Sequence[Category]) -> list[int] | None:
    """The grey levels that a list gives its classes as colours."""
    colors = [item.get("color") for item in names]
    if not all(color and len(set(color)) == 1 for color in colors):
        return None
    return [color[0] for color in colors if color]


def _palette_indices(names: Sequence[Category], palette: np.ndarray | None) -> list[int] | None:
    """Of a list of colours, their places in the files' palette; None where one is not in it."""
    if palette is None or not all(item.get("color") for item in names):
        return None
    known = [tuple(color) for color in palette.tolist()]
    colors = [tuple(item["color"]) for item in names]
    return [known.index(color) for color in colors] if set(colors) <= set(known) else None


def _of_colors(values: Values, names: Sequence[Category] | None, source: str, notes: list[str]) -> list[Category]:
    if names is not None:
        if not all("color" in item for item in names):
            raise DataError(f"{_first(values.found)} has colours, but {source} gives its classes none: add r, g and b")
        categories = [{**item, "value": color_text(_packed(item["color"]))} for item in names]
        _check_known(values, {_packed(item["color"]) for item in names}, source, color_text)
        return categories
    order = {_packed(voc_color(index)): index for index in reversed(range(256))}
    border = color_id(VOC_BORDER)
    is_voc = set(values.found) <= {*order, border}
    ranked = sorted(values.found, key=lambda value: (order.get(value, 256) if is_voc else 0, _rgb(value)))
    kept = [value for value in ranked if not (is_voc and value == border)]
    categories = [
        {"name": f"class_{number}", "value": color_text(value), "color": list(_rgb(value))}
        for number, value in enumerate(kept)
    ]
    if len(kept) < len(ranked):
        notes.append(f"{VOC_BORDER}, Pascal VOC's border of objects, is ignored")
        categories.append({"name": IGNORE, "value": VOC_BORDER})
    return categories


def _rgb(value: int) -> tuple[int, int, int]:
    return value & 255, value >> 8 & 255, value >> 16 & 255


def _packed(color: Sequence[int]) -> int:
    return color[0] | color[1] << 8 | color[2] << 16


def _top(values: Values) -> int:
    """The label that marks what to ignore where classes are numbered."""
    return 65535 if max(values.found) > 255 else 255


def _is_binary(values: Values) -> bool:
    return 255 in values.found and set(values.found) <= {0, 255}


def _unnamed(values: Values, notes: list[str]) -> list[Category]:
    numbers = [value for value in values.found if value != _top(values)]
    if _is_binary(values):
        notes.append("masks of 0 and 255: black is class_0, white class_1")
        return [{"name": "class_0", "value": 0}, {"name": "class_1", "value": 255}]
    if max(numbers) < max(_FEW, 2 * len(numbers)):
        categories = [{"name": f"class_{number}", "value": number} for number in range(max(numbers) + 1)]
        return _with_ignore(values, categories, "", notes)
    if _is_colorful(values.palette):
        notes.append(f"the indices {first_few(numbers)} of the palette are a class each")
        return _with_ignore(values, [{"name": f"class_{n}", "value": n} for n in numbers], "", notes)
    notes.append(f"grey levels {first_few(values.found)} are no numbers from 0: each is a class")
    return [{"name": f"class_{number}", "value": value} for number, value in enumerate(values.found)]


def _numbered(values: Values, names: list[Category], source: str, notes: list[str]) -> list[Category]:
    """Classes of a list without numbers: from 0, or from 1 where no label is 0; or black and white."""
    count, found = len(names), set(values.found)
    if count <= 2 and (_is_binary(values) or (count == 1 and found <= {0, 1, 255})):
        white = 255 if _is_binary(values) else 1
        if count == 1:
            notes.append(f"label 0 is named background: {source} names {names[0]['name']!r} alone")
            names = [{"name": "background"}, *names]
        return [{**names[0], "value": 0}, {**names[1], "value": white}]
    numbers = found - {_top(values)}
    if 0 not in numbers and numbers and max(numbers) == count:
        notes.append(f"labels count from 1: {source} names {count} classes, and no label is 0")
        return [{**item, "value": number} for number, item in enumerate(names, 1)]
    if 0 in numbers and max(numbers) == count:
        raise DataError(
            f"{values.found[count]} has label {count}, but {source} names {count} classes, the first of them label 0. "
            f"If 0 stands for nothing, write `{IGNORE}` as its first line, or `background` if that is a class"
        )
    return [{**item, "value": number} for number, item in enumerate(names)]


def _with_ignore(values: Values, categories: list[Category], source: str, notes: list[str]) -> list[Category]:
    known = {item["value"] for item in categories}
    top = _top(values)
    if top in values.found and top not in known:
        notes.append(f"label {top} is ignored")
        categories = [*categories, {"name": IGNORE, "value": top}]
    _check_known(values, known | {top}, source, str)
    return categories


def _check_known(values: Values, known: set[int], source: str, spell: Callable[[int], str]) -> None:
    unknown = [value for value in values.found if value not in known]
    if unknown:
        raise DataError(
            f"{values.found[unknown[0]]} has {first_few(map(spell, unknown))}, which {source} does not name; add its "
            f"class, with the name `{IGNORE}` if there is nothing to learn"
        )


def _is_colorful(palette: np.ndarray | None) -> bool:
    return palette is not None and not (palette == palette[:, :1]).all()


def _with_palette(categories: list[Category], palette: np.ndarray | None) -> list[Category]:
    """Colours of a palette in place of none, unless it says no more than grey levels do."""
    if palette is None or not _is_colorful(palette):
        return categories
    return [
        {**item, "color": palette[item["value"]].tolist()}
        if "color" not in item and item["value"] < len(palette)
        else item
        for item in categories
    ]
