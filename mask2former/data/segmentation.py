"""Masks as COCO's files write them, checked: pycocotools takes them at their word, and crashes on some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

MAX_PIXELS = 2**31 - 1  # of an image; pycocotools counts in 32 bits
FAR = 100  # polygons end within this many times the longer side of their image; they are drawn point by point
_BATCH = 1 << 16  # characters; more are slower, beyond the processor's cache
_MOST_DIGITS = 7  # 2**35: far beyond any run


def check_segmentation(segmentation: Any, height: int, width: int) -> Any:
    """COCO's `segmentation` of an image, in the form that pycocotools takes.

    Polygons of fewer than three points are left out. Whether compressed run lengths make up a mask is left to
    `find_wrong_code`, which looks at many at once.

    Raises:
        ValueError: no mask, or not one of this image; says what is wrong.
        TypeError: something in it is no number.
    """
    if isinstance(segmentation, Mapping) and "counts" in segmentation and "size" in segmentation:
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths of size {str(segmentation['size'])[:50]} in an image of {[height, width]}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
                raise ValueError(f"run lengths that do not add up to the image's {height} * {width} pixels")
            return mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        if not isinstance(counts, (str, bytes)):
            raise ValueError(f"run lengths that are a {type(counts).__name__}")
        return {"size": [height, width], "counts": counts}
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str) and len(segmentation):
        limit = FAR * max(height, width)
        return [polygon for polygon in segmentation if _check_polygon(polygon, limit)]
    raise ValueError("no mask; a segmentation is a list of polygons or an RLE with counts and size")


def _check_polygon(polygon: Any, limit: int) -> bool:
    """Whether a list of x and y has three points or more; raises ValueError for what is none."""
    if isinstance(polygon, (str, Mapping)):
        raise ValueError(f"a polygon that is a {type(polygon).__name__}")
    if len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} numbers; they are pairs of x and y")
    if len(polygon) < 6:
        return False
    total = sum(polygon)  # of which these three need no more than a few nanoseconds for each number
    if not (total == total and -limit <= min(polygon) and max(polygon) <= limit):
        raise ValueError(f"a polygon with coordinates that are no numbers, or beyond ±{limit} pixels")
    return True


def find_wrong_code(codes: Sequence[Mapping[str, Any]]) -> int | None:
    """Index of the first of some compressed run lengths that are not those of a mask of their `size`, or None."""
    start = 0
    while start < len(codes):
        texts: list[bytes] = []
        left = _BATCH
        while left > 0 and start + len(texts) < len(codes):
            counts = codes[start + len(texts)]["counts"]
            texts.append(counts.encode() if isinstance(counts, str) else counts)
            left -= len(texts[-1])
        sizes = [code["size"] for code in codes[start : start + len(texts)]]
        wrong = np.flatnonzero(_are_wrong(texts, np.array([height * width for height, width in sizes], np.int64)))
        if len(wrong):
            return start + int(wrong[0])
        start += len(texts)
    return None


def _are_wrong(texts: Sequence[bytes], areas: np.ndarray) -> np.ndarray:
    """For each code whether it is none of a mask of that many pixels.

    A number is written in characters of 5 bits, lowest first, from "0" on; bit 32 says that more follow, the highest
    bit of the last one is the sign. From the fourth run on, it is the difference to the run before the last.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    ends = np.cumsum(lengths)
    characters = np.frombuffer(b"".join(texts), np.uint8) - 48  # what is below "0" wraps to something large
    is_last = characters < 32
    wrong = lengths == 0
    wrong[np.searchsorted(ends, np.flatnonzero(characters > 63), side="right")] = True
    wrong[~wrong] |= ~is_last[ends[~wrong] - 1]
    is_last[ends[lengths > 0] - 1] = True
    last = np.flatnonzero(is_last)  # character of each number
    digits = np.diff(last, prepend=-1)
    wrong[np.searchsorted(ends, last[digits > _MOST_DIGITS], side="right")] = True

    characters &= 31
    numbers = (characters[last] ^ 16).astype(np.int64) - 16
    for place in range(1, min(int(digits.max(initial=0)), _MOST_DIGITS)):
        longer = np.flatnonzero(digits > place)
        numbers[longer] = numbers[longer] * 32 + characters[last[longer] - place]

    stops = np.searchsorted(last, ends)
    return wrong | _do_not_add_up(numbers, np.diff(stops, prepend=0), areas)


def _do_not_add_up(numbers: np.ndarray, amounts: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """For each code, of so many numbers, whether its runs are negative or too long, or make up another area."""
    # Each code fills rows of two, so that a column holds runs and the differences to them; its first run is apart.
    rows = (amounts + 1) // 2
    row = np.cumsum(rows) - rows
    start = np.cumsum(amounts) - amounts
    sums = np.zeros((rows.sum() + 1, 2), np.int64)  # after a first row of nothing
    sums.ravel()[np.arange(2, len(numbers) + 2) + np.repeat(2 * row - start, amounts)] = numbers
    some = amounts > 0
    first = sums[row[some] + 1, 0]
    sums[row[some] + 1, 0] = 0
    np.cumsum(sums, axis=0, out=sums)
    runs = sums[1:] - np.repeat(sums[row], rows, axis=0)
    runs[row[some], 0] = first
    odd = amounts % 2 == 1
    runs[row[odd] + rows[odd] - 1, 1] = 0
    flat = runs.ravel()  # many times as fast as operations along rows of two

    wrong = ~some
    outside = np.flatnonzero(flat.view(np.uint64) > MAX_PIXELS)  # negative ones are large then
    wrong[np.searchsorted(row + rows, outside // 2, side="right")] = True
    if len(flat):
        wrong[some] |= np.add.reduceat(flat, 2 * row[some]) != areas[some]
    return wrong
