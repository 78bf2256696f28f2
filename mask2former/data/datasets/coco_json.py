"""The one reader of COCO's JSON files: what data sets and evaluators take from them has been checked here."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mask2former.data.datasets.metadata import DEFAULT_HINT, first_few
from mask2former.data.images import DataError
from mask2former.data.segmentation import MAX_PIXELS, check_segmentation, find_wrong_code

Record = dict[str, Any]


def read_annotations(path: str, hint: str = DEFAULT_HINT, *, labelled: bool = True) -> dict[str, list[Record]]:
    """A parsed file of COCO annotations: lists of records.

    Args:
        path: of the file.
        hint: what to do where there is none.
        labelled: whether it must have a list of annotations, which files of test sets lack.

    Raises:
        FileNotFoundError: no such file.
        DataError: no JSON, or not of these lists.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no annotation file {os.path.abspath(path)}; {hint}")
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    needed = ("images", "categories", *(("annotations",) if labelled else ()))
    missing = [key for key in needed if key not in content] if isinstance(content, dict) else needed
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; this is no file of COCO annotations")
    for key in ("images", "categories", "annotations"):
        records = content.get(key, [])
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(f"{path}: {key} is no list of records; this is no file of COCO annotations")
    for category in content["categories"]:
        if type(category.get("id", 0)) is not int or not isinstance(category.get("name", ""), str):
            raise DataError(
                f"{path}: category {str(category)[:100]} has an id that is no number or a name that is no text"
            )
    return content


def images_by_id(content: Mapping[str, Any], source: str) -> dict[Any, Record]:
    """The checked images of a parsed file (`source`).

    Raises:
        DataError: an id given twice, or an image without id, name or size.
    """
    images = content["images"]
    with _naming(source, "image", images) as record:
        for image in record:
            _check_id(image["id"])
            if not isinstance(image["file_name"], str):
                raise ValueError(f"file_name is a {type(image['file_name']).__name__}")
            height, width = image["height"], image["width"]
            if type(height) is not int or type(width) is not int or height < 1 or width < 1:
                raise ValueError(f"height and width are {_brief(height)} and {_brief(width)}, not numbers of pixels")
            if height * width > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels, more than the {MAX_PIXELS} of the largest image")
    if len({type(image["id"]) for image in images}) > 1:
        raise DataError(f"{source}: some image ids are numbers and some are texts")
    check_ids(source, "listed more than once", _given_twice(image["id"] for image in images))
    return {image["id"]: image for image in images}


def instances_by_image(content: Mapping[str, Any], source: str) -> dict[Any, list[Record]]:
    """The checked instance annotations of each image; segmentations are polygons or compressed run lengths.

    Raises:
        DataError: as `images_by_id`; for annotation ids given twice, an annotation of no image that is listed, or one
            that lacks a part, has one of the wrong type, or a mask that is none of its image.
    """
    images = images_by_id(content, source)
    annotations = content["annotations"]
    checked: dict[Any, list[Record]] = {key: [] for key in images}
    codes, owners = [], []
    with _naming(source, "annotation", annotations) as record:
        for annotation in record:
            _check_id(annotation["id"])
            image = images.get(annotation["image_id"])
            if image is None:
                raise ValueError("no such image is listed")
            segmentation = check_segmentation(annotation.get("segmentation"), image["height"], image["width"])
            if isinstance(segmentation, dict):
                codes.append(segmentation)
                owners.append(annotation)
            _check_id(annotation["category_id"])
            _check_rest(annotation)
            checked[image["id"]].append({**annotation, "segmentation": segmentation})
    if twice := _given_twice(annotation["id"] for annotation in annotations):
        raise DataError(f"{source}: annotation ids given twice: {first_few(twice)}; ids must be unique in the file")
    wrong = find_wrong_code(codes)
    if wrong is not None:
        where = _where(source, "annotation", owners[wrong], 0)
        raise DataError(f"{where}: run lengths that do not add up to the image's pixels")
    return checked


def panoptic_annotations(content: Mapping[str, Any], source: str) -> list[Record]:
    """The checked annotations of a panoptic file, one per image, in their order.

    Raises:
        DataError: an image annotated twice, an annotation or segment that lacks a part or has one of the wrong type, a
            segment id given twice in an image or outside 1..256³-1.
    """
    annotations = content["annotations"]
    with _naming(source, "annotation", annotations) as record:
        for annotation in record:
            _check_id(annotation["image_id"])
            if not isinstance(annotation["file_name"], str) or not isinstance(annotation["segments_info"], list):
                raise ValueError("file_name is no text, or segments_info no list")
    check_ids(source, "annotated more than once", _given_twice(annotation["image_id"] for annotation in annotations))
    for annotation in annotations:
        image = f"{annotation['image_id']} ({annotation['file_name']})"
        seen: set[int] = set()
        with _naming(f"{source}: image {image}", "segment", annotation["segments_info"]) as record:
            for segment in record:
                number = segment["id"]
                if type(number) is not int or number in seen or not 0 < number < 256**3:
                    raise ValueError(f"segment ids must be unique in an image and within 1..{256**3 - 1}")
                seen.add(number)
                _check_id(segment["category_id"])
                _check_rest(segment)
    return annotations


def check_ids(source: str, problem: str, ids: Sequence[Any]) -> None:
    """Raises `DataError` if there are any."""
    if ids:
        raise DataError(f"{source}: images {problem}: {first_few(ids)}")


def _given_twice(ids: Iterator[Any]) -> list[Any]:
    return [key for key, count in Counter(ids).items() if count > 1]


def _check_id(value: Any) -> None:
    if type(value) is not int and type(value) is not str:
        raise ValueError(f"an id that is {_brief(value)}, neither number nor text")


def _check_rest(record: Record) -> None:
    """Raise unless `iscrowd`, `area` and `bbox`, where given, are numbers; an empty box is none, as tools write it."""
    if record.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"iscrowd is {_brief(record['iscrowd'])}, neither 0 nor 1")
    box = record.get("bbox", (0, 0, 0, 0))
    if len(box) not in (0, 4) or not math.isfinite(sum(box) + record.get("area", 0)):
        raise ValueError("a bbox that is not four numbers, or an area that is none")


def _brief(value: Any) -> str:
    return str(value)[:50] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


def _where(source: str, kind: str, record: Any, place: int) -> str:
    if not isinstance(record, dict) or ("id" not in record and "image_id" not in record):
        return f"{source}: {kind} number {place} of the list"
    own = f" {_brief(record['id'])}" if "id" in record else ""
    return f"{source}: {kind}{own}" + (f" of image {_brief(record['image_id'])}" if "image_id" in record else "")


@contextmanager
def _naming(source: str, kind: str, records: Sequence[Any]) -> Iterator[Iterator[Record]]:
    """Gives the records one by one; whatever is wrong with one of them becomes a `DataError` that names it."""
    place, record = 0, None

    def each() -> Iterator[Record]:
        nonlocal place, record
        for place, record in enumerate(records, 1):  # noqa: B007
            yield record

    try:
        yield each()
    except KeyError as error:
        raise DataError(f"{_where(source, kind, record, place)}: lacks {error.args[0]}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{_where(source, kind, record, place)}: {error}") from error
