"""Label maps and panoptic maps as a data set means them: numbers or colours in the files become classes.

A dataset dict may say, beside its `sem_seg_file_name`, what the pixels of that file mean:

- `sem_seg_values`: grey level or palette index → class or ignore label; or
- `sem_seg_colors`: R + 256 G + 256² B → class or ignore label.

Without either the pixels are classes. Beside its `pan_seg_file_name`, `void_segments` lists the segments that count as
no segment.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mask2former.data.datasets.metadata import first_few
from mask2former.data.images import DataError, read_colors, read_label_map, read_panoptic_png


def read_labels(record: Mapping[str, Any]) -> np.ndarray:
    """(H, W) int32 classes and ignore labels of the label map of a dataset dict.

    Raises:
        DataError: the file is no label map, or a pixel has a value that `sem_seg_values` or `sem_seg_colors` lacks.
    """
    path = record["sem_seg_file_name"]
    if "sem_seg_colors" in record:
        return _translated(read_colors(path), record["sem_seg_colors"], path, color_text)
    if "sem_seg_values" in record:
        return _translated(read_label_map(path), record["sem_seg_values"], path, str)
    return read_label_map(path)


def read_segments(record: Mapping[str, Any]) -> np.ndarray:
    """(H, W) int32 segment ids of the panoptic PNG of a dataset dict, 0 where void."""
    ids = read_panoptic_png(record["pan_seg_file_name"])
    if record.get("void_segments"):
        ids[np.isin(ids, record["void_segments"])] = 0
    return ids


def color_text(value: int) -> str:
    """The id of a colour as people write colours: "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*(value >> shift & 255 for shift in (0, 8, 16)))


def color_id(text: str) -> int:
    """The id of a colour "#rrggbb".

    Raises:
        DataError: the text is no colour.
    """
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise DataError(f"{text!r} is no colour; write it as '#rrggbb', in quotation marks")
    return int.from_bytes(bytes.fromhex(text[1:]), "little")


def _translated(values: np.ndarray, classes: Mapping[int, int], path: str, spell: Callable[[int], str]) -> np.ndarray:
    """The class of each pixel; values are looked up once per run of equal pixels."""
    known = np.array(sorted(classes), dtype=values.dtype)
    flat = values.ravel()
    starts = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1]
    runs = flat[starts]
    position = np.searchsorted(known, runs).clip(max=len(known) - 1)
    unknown = np.unique(runs[known[position] != runs])
    if len(unknown):
        raise DataError(
            f"{path}: {first_few(map(spell, unknown.tolist()))} is none of the {len(known)} values that the classes of "
            "the data set have; name it in the data description"
        )
    of_runs = np.array([classes[value] for value in known.tolist()], dtype=np.int32)[position]
    return np.repeat(of_runs, np.diff(np.r_[starts, flat.size])).reshape(values.shape)
