"""Objects of an image, from the shapes that annotation tools draw, and the XML and JSON that they write."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as mask_api

from mask2former.d2.structures import BoxMode
from mask2former.data.images import DataError, read_size
from mask2former.data.rle import encode_mask
from mask2former.data.segmentation import check_segmentation

CORNERS = 64
"""Of the polygon that stands for an ellipse."""

Size = tuple[int, int]


def image_record(path: Path, image_id: str, stated: Size | None, source: str) -> dict[str, Any]:
    """A dataset dict of an image without its objects; (height, width) as `stated`, or else as the file has it.

    Raises:
        DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(f"{source}: there is no image {path}; put it there, or correct its name")
    height, width = stated or read_size(path)
    return {"file_name": str(path), "image_id": image_id, "height": height, "width": width}


def polygon_object(category: int, polygons: Sequence[Sequence[float]], size: Size, where: str) -> dict[str, Any]:
    """An annotation of one object: polygons x, y, x, y, … in pixels of an image of (height, width) `size`.

    Raises:
        DataError: a polygon of fewer than three points, or one that is none; `where` names it.
    """
    try:
        lengths = [len(polygon) for polygon in polygons]
        if min(lengths, default=0) < 6:
            raise ValueError(
                f"a polygon of {min(lengths, default=0) // 2} points; it needs three: complete or delete it"
            )
        segmentation = check_segmentation([[float(number) for number in polygon] for polygon in polygons], *size)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None
    corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return _annotation(category, segmentation, [*low.tolist(), *(high - low).tolist()])


def mask_object(category: int, mask: np.ndarray, size: Size, where: str, corner: Size = (0, 0)) -> dict[str, Any]:
    """An annotation of one object: a mask whose first pixel is at (row, column) `corner` of the image.

    Raises:
        DataError: it holds no pixel, or leaves the image.
    """
    whole = np.zeros(size, dtype=bool)
    top, left = corner
    place = whole[max(top, 0) : top + mask.shape[0], max(left, 0) : left + mask.shape[1]]
    if place.shape != mask.shape or not mask.any():
        raise DataError(f"{where}: a mask that leaves the image of {size[1]}x{size[0]} pixels, or holds none of them")
    place[...] = mask
    code = encode_mask(whole)
    return _annotation(category, code, mask_api.toBbox(code).tolist())


def _annotation(category: int, segmentation: Any, box: list[float]) -> dict[str, Any]:
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    """The polygon of a box."""
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> list[float]:
    """The polygon of an ellipse around (x, y), turned clockwise as images are shown."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = []
    for number in range(CORNERS):
        angle = 2 * math.pi * number / CORNERS
        along, across = rx * math.cos(angle), ry * math.sin(angle)
        points += [x + along * cosine - across * sine, y + along * sine + across * cosine]
    return points


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it holds no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file in UTF-8.

    Raises:
        DataError: it holds no XML, or declares a document type or entities, by which a small file can fill the memory.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
            raise DataError(
                f"{path}: XML that declares a document type or entities is not read; remove the declarations"
            )
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid XML in UTF-8: {error}") from error
