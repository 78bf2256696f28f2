"""Predictions as files in COCO's formats, which annotation tools and evaluations read.

| task | files |
|---|---|
| panoptic | `panoptic.json`, COCO's panoptic format and scores, and `panoptic/NAME.png`, ids of segments |
| instance | `instances.json`, COCO's format of annotations, with run lengths, and scores |
| semantic | `semantic.json`, the list of files, and `semantic/NAME.png`, the class of each pixel |

Ids of categories are those of the data set that the model was trained on, where these are known, else the place of
a class in the model's output, which is also what the pixels of semantic PNGs hold.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mask2former.evaluation.output import encode_png
from mask2former.files import replacing, write_bytes
from mask2former.predict.journal import Entry, read_records
from mask2former.predict.result import Result


def write_result(result: Result, folder: Path, name: str) -> dict[str, Any]:
    """Write the PNG `TASK/NAME.png` of a result, if its task has one.

    Returns:
        What the JSON file says of the image: `height`, `width` and `annotations`.
    """
    path = result_png(result.task, folder, name)
    if result.task == "panoptic":
        annotations = [result.to_panoptic_png(path)]
    elif result.task == "instance":
        annotations = result.to_coco()
    else:
        many = len(result.categories.categories) > 256
        write_bytes(path, encode_png(result.label_map.astype(np.uint16 if many else np.uint8)))
        annotations = [{"image_id": 1, "file_name": path.name}]
    return {"height": result.size[0], "width": result.size[1], "annotations": annotations}


def result_png(task: str, folder: Path, name: str) -> Path:
    """Where the PNG of an image is, of tasks that have one."""
    return folder / task / f"{name}.png"


def write_json(folder: Path, task: str, categories: Sequence[dict[str, Any]], entries: Sequence[Entry]) -> Path:
    """Write the JSON file of a folder from the records of images, holding one at a time, and return its path."""
    path = folder / ("instances.json" if task == "instance" else f"{task}.json")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"images": ')
        _write_list(file, _images(entries))
        file.write(', "annotations": ')
        _write_list(file, _annotations(entries))
        file.write(f', "categories": {json.dumps(categories)}}}')
    return path


def _images(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(read_records(entries), start=1):
        yield {"id": number, **{key: record[key] for key in ("file_name", "height", "width")}}


def _annotations(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """The annotations of all images, numbered throughout."""
    count = 0
    for number, record in enumerate(read_records(entries), start=1):
        for annotation in record["annotations"]:
            count += 1
            own_id = {"id": count} if "id" in annotation else {}
            yield {**annotation, **own_id, "image_id": number}


def _write_list(file: IO[str], items: Iterable[dict[str, Any]]) -> None:
    file.write("[")
    for number, item in enumerate(items):
        file.write(f"{', ' if number else ''}{json.dumps(item)}")
    file.write("]")
