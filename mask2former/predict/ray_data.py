"""Collections beyond one machine: Ray Data reads images or Parquet, predicts, and writes Parquet or COCO's format.

    dataset = read_images("s3://bucket/photos/")
    predict_dataset(dataset, "model_final.pth", workers=8, gpus=1).write_parquet("s3://bucket/found/")

Nothing is held but the images and results that are under way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib import import_module
from tempfile import TemporaryFile
from typing import Any, TextIO

import numpy as np

from mask2former.data.images import DataError, decode_image
from mask2former.engine.command import import_modules
from mask2former.files import replacing
from mask2former.predict.inputs import Picture
from mask2former.predict.predictor import Predictor

Dataset = Any
"""`ray.data.Dataset`."""


def ray_data() -> Any:
    """The module `ray.data`.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return import_module("ray.data")
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "pyarrow", "pandas"):
            raise
        raise ModuleNotFoundError(
            f"Ray Data needs {error.name}, which is not installed: pip install 'mask2former[ray]'", name=error.name
        ) from error


def read_images(paths: str | Sequence[str], **options: Any) -> Dataset:
    """Images of files and folders, here or in any storage that Ray knows: columns `bytes`, undecoded, and `path`.

    Args:
        options: of `ray.data.read_binary_files`.
    """
    return ray_data().read_binary_files(paths, include_paths=True, **options)


def predict_dataset(
    dataset: Dataset,
    source: str | os.PathLike[str],
    *,
    column: str = "bytes",
    name: str = "path",
    workers: int = 1,
    gpus: float = 0,
    batch_size: int = 8,
    modules: Sequence[str] = (),
    **options: Any,
) -> Dataset:
    """What is found in each image of a data set, such as `read_images` or `ray.data.read_parquet` give.

    Args:
        source: of `Predictor`; each worker loads it, so every machine must find it there.
        column: has encoded images, as bytes or as records with `bytes` in them, or arrays RGB uint8 (H, W, 3).
        name: a column that tells images apart.
        workers: processes that hold a model each.
        gpus: that each of them has.
        batch_size: rows that a worker takes at a time; images of one size among them run together.
        modules: to be imported by the workers first, with own components.
        options: of `Predictor`, such as `task`, `threshold` and `tile`.

    Returns:
        For each image a row: `file_name`; `height` and `width`; `annotations`, a list of records with `category_id`,
        `category` (its name), `score` (nothing where there is none), `bbox` (x, y, width, height), `area` and `counts`,
        COCO's run lengths; and `error`, why the image could not be read, or nothing.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    ray_data()
    return dataset.map_batches(
        _Worker,
        fn_constructor_kwargs={
            "source": os.fspath(source),
            "columns": (column, name),
            "modules": list(modules),
            "options": options,
        },
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray_data().ActorPoolStrategy(size=workers),
        num_gpus=gpus,
    )


def write_coco(dataset: Dataset, path: str | os.PathLike[str]) -> int:
    """Write what `predict_dataset` found, or a data set read from Parquet that it was written to, as a file of COCO's.

    Rows are written as they come. Categories are those of which something was found.

    Returns:
        The number of images that could be read, which are those in the file.
    """
    count = number = 0
    categories: dict[int, str] = {}
    with (
        replacing(path) as temporary,
        TemporaryFile("w+", encoding="utf-8") as found,
        temporary.open("w", encoding="utf-8") as stream,
    ):
        stream.write('{"images": [')
        for row in dataset.iter_rows():
            if row["error"]:
                continue
            count += 1
            size = {"height": int(row["height"]), "width": int(row["width"])}
            _append(stream, {"id": count, "file_name": row["file_name"], **size}, first=count == 1)
            for one in row["annotations"]:
                number += 1
                categories[int(one["category_id"])] = one["category"]
                _append(found, {"id": number, **_annotation(one, count, size)}, first=number == 1)
        stream.write('], "annotations": [')
        found.seek(0)
        shutil.copyfileobj(found, stream)
        listed = [{"id": id_, "name": name} for id_, name in sorted(categories.items())]
        stream.write(f'], "categories": {json.dumps(listed)}}}')
    return count


def _append(stream: TextIO, record: dict[str, Any], *, first: bool) -> None:
    stream.write(("" if first else ", ") + json.dumps(record))


def _annotation(one: dict[str, Any], image_id: int, size: dict[str, int]) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": int(one["category_id"]),
        "segmentation": {"size": [size["height"], size["width"]], "counts": one["counts"]},
        "bbox": [float(side) for side in one["bbox"]],
        "area": int(one["area"]),
        "iscrowd": 0,
        **({} if one["score"] is None else {"score": float(one["score"])}),
    }


class _Worker:
    """A model in a process of Ray's."""

    def __init__(self, source: str, columns: tuple[str, str], modules: list[str], options: dict[str, Any]) -> None:
        import_modules(modules)
        self._column, self._name = columns
        self._predictor = Predictor(source, **options)

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        names = [str(name) for name in batch[self._name]]
        rows: list[dict[str, Any]] = [{"file_name": name, "annotations": [], "error": ""} for name in names]
        pictures: list[Picture] = []
        for row, value in zip(rows, batch[self._column], strict=True):
            try:
                pictures.append(Picture(_pixels(value, row["file_name"]), row["file_name"]))
            except ValueError as error:
                row["error"] = str(error)
        read = [row for row in rows if not row["error"]]
        results = self._predictor.stream(pictures, batch_size=max(1, len(pictures)))
        for row, result in zip(read, results, strict=True):
            row["height"], row["width"] = result.size
            row["annotations"] = [
                {**one, "category": name, "counts": one["segmentation"]["counts"]}
                for one, name in zip(result.to_coco(), result.names, strict=True)
            ]
        arrow = import_module("pyarrow")
        return arrow.Table.from_pylist(rows, schema=_schema(arrow))


def _pixels(value: Any, name: str) -> np.ndarray:
    """RGB uint8 (H, W, 3) of an array, of the bytes of a file, or of a record that holds these.

    Raises:
        ValueError: it is none.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return decode_image(content, name)
    if not isinstance(content, np.ndarray) or content.ndim != 3 or content.dtype != np.uint8:
        raise DataError(f"{name}: no image: give the bytes of a file, or an array RGB uint8 (H, W, 3)")
    return content


def _schema(arrow: Any) -> Any:
    """Of rows, the same where nothing was found."""
    annotation = arrow.struct(
        [
            ("category_id", arrow.int64()),
            ("category", arrow.string()),
            ("score", arrow.float64()),
            ("bbox", arrow.list_(arrow.float64())),
            ("area", arrow.int64()),
            ("counts", arrow.string()),
        ]
    )
    columns = [("file_name", arrow.string()), ("height", arrow.int64()), ("width", arrow.int64())]
    return arrow.schema([*columns, ("annotations", arrow.list_(annotation)), ("error", arrow.string())])
