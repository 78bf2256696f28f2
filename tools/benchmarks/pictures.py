"""A data set of synthetic pictures on disk, in COCO's panoptic format, for what must read files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import register_coco_panoptic
from mask2former.data.datasets.metadata import load_categories
from mask2former.data.images import id_to_rgb
from tools.benchmarks.scenes import NUM_THINGS, Size, grid_ids

_VERTICES = 24  # of the polygons of instance annotations
_JPEG_QUALITY = 92


class Pictures(NamedTuple):
    """A registered data set."""

    name: str
    dicts: list[dict[str, Any]]
    """As the data set gives them, with polygons as `annotations` too, for mappers of instances."""


@contextmanager
def pictures(count: int, size: Size, segments: int) -> Iterator[Pictures]:
    """Write and register `count` pictures with `segments` segments each; both are gone afterwards."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        name = f"benchmark_{root.name}"
        _write(root, count, size, segments)
        register_coco_panoptic(
            name,
            image_root=root,
            panoptic_root=root,
            panoptic_json=root / "panoptic.json",
            categories=load_categories("coco_panoptic_133"),
        )
        try:
            annotations = _polygons(size, segments)
            yield Pictures(name, [{**record, "annotations": annotations} for record in DatasetCatalog.get(name)])
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _write(root: Path, count: int, size: Size, segments: int) -> None:
    categories = load_categories("coco_panoptic_133")
    ids = grid_ids(segments, size)
    areas = np.bincount(ids.ravel(), minlength=segments + 1)
    infos = [
        {"id": k + 1, "category_id": categories[k % NUM_THINGS]["id"], "iscrowd": 0, "area": int(areas[k + 1])}
        for k in range(segments)
    ]
    images, annotations = [], []
    for i in range(count):
        cv2.imwrite(str(root / f"{i}.jpg"), _picture(size, i), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        cv2.imwrite(str(root / f"{i}.png"), id_to_rgb(ids)[:, :, ::-1])
        images.append({"id": i, "file_name": f"{i}.jpg", "height": size[0], "width": size[1]})
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content), encoding="utf-8")


def _picture(size: Size, seed: int) -> np.ndarray:
    """Soft blobs with some noise (H, W, 3) uint8: a JPEG of them is about as large as one of a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (9, 12, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def _polygons(size: Size, segments: int) -> list[dict[str, Any]]:
    """Ellipses inside the rectangles of `grid_ids`."""
    ids = grid_ids(segments, size)
    angles = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
    annotations = []
    for k in range(segments):
        rows, columns = np.nonzero(ids == k + 1)
        top, left, height, width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
        x, y = left + width * (1 + np.cos(angles)) / 2, top + height * (1 + np.sin(angles)) / 2
        polygon = np.stack([x, y], axis=1).ravel().tolist()
        annotations.append({"category_id": k % NUM_THINGS, "segmentation": [polygon], "iscrowd": 0})
    return annotations
