"""Masks as COCO's files write them, checked: pycocotools takes them at their word, and crashes on some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

MAX_PIXELS = 2**31 - 1  # of an image; pycocotools counts in 32 bits
FAR = 100  # polygons end within this many times the longer side of their image; they are drawn point by point
_BATCH = 1 << 16  # characters; more are slower, beyond the processor's cache


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
    lengths = np.array([len(text) for text in texts])
    owner = np.repeat(np.arange(len(texts)), lengths)
    data = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    wrong = lengths == 0
    wrong[owner[(data < 0) | (data > 63)]] = True
    more = (data & 32) != 0
    ends = (np.cumsum(lengths) - 1)[~wrong | (lengths > 0)]
    wrong[owner[ends[more[ends]]]] = True
    more[ends] = False
    if not len(data):
        return wrong

    starts = np.flatnonzero(np.r_[True, ~more[:-1]])
    place = np.arange(len(data)) - np.repeat(starts, np.diff(np.r_[starts, len(data)]))
    wrong[owner[place > 6]] = True  # 2**35: far beyond any run
    place = place.clip(max=6)
    numbers = np.add.reduceat((data & 31) << 5 * place, starts)
    last = np.r_[starts[1:], len(data)] - 1
    numbers -= np.where(data[last] & 16, np.int64(1) << 5 * (place[last] + 1), 0)

    owner = owner[starts]
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    amounts = np.diff(np.r_[first, len(numbers)])
    code = np.repeat(np.arange(len(first)), amounts)
    # All numbers of a code but its first fill rows of two, so that each column holds runs and their differences.
    rows = np.cumsum(amounts // 2) - amounts // 2
    place = np.arange(len(numbers)) - first[code] - 1
    rest = place >= 0
    sums = np.zeros((amounts.sum() // 2 + 2, 2), np.int64)
    sums.ravel()[2 * rows[code[rest]] + place[rest] + 2] = numbers[rest]
    sums = np.cumsum(sums, axis=0)
    runs = numbers
    runs[rest] = sums.ravel()[2 * rows[code[rest]] + place[rest] + 2] - sums[rows[code[rest]], place[rest] % 2]
    wrong[owner[(runs < 0) | (runs > MAX_PIXELS)]] = True
    wrong[owner[first]] |= np.add.reduceat(runs.clip(0, MAX_PIXELS), first) != areas[owner[first]]
    return wrong
