"""Mapillary Vistas v1.2: COCO instance annotations of the instance maps."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from mask2former.data.datasets.mapillary_vistas import SPLITS, instances_json
from mask2former.data.datasets.metadata import load_categories
from mask2former.data.images import read_label_map
from mask2former.data.prepare.convert import check_count, convert_to_json, list_sources
from mask2former.data.prepare.segments import instance_annotations

COUNTS = {"train": 18000, "val": 2000}

_HINT = "unpack Mapillary Vistas v1.2 into $DETECTRON2_DATASETS, or give --root"


def prepare_instance(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes `mapillary_vistas_instance_{train,val}.json` of the 37 kinds of things."""
    things = [category for category in load_categories("mapillary_vistas_65") if category["isthing"]]
    found = {split: list_sources(root / SPLITS[split] / "instances", (".png",), _HINT) for split in SPLITS}
    for split, maps in found.items():
        folder = root / SPLITS[split] / "instances"
        check_count(len(maps), COUNTS[split], str(folder))
        convert_to_json(
            partial(instance_record, {category["id"] for category in things}),
            [(folder / file, name) for name, file in maps.items()],
            instances_json(root, split),
            categories=things,
            title=f"instance {split}",
            workers=workers,
            overwrite=overwrite,
        )


def instance_record(things: set[int], path: Path) -> bytes:
    """JSON of the image and the annotations of a 16-bit instance map, which holds `256 * label + number`.

    Category ids are those of the panoptic annotations: label + 1.
    """
    ids = read_label_map(path)
    categories = {int(value): value // 256 + 1 for value in np.unique(ids).tolist() if value // 256 + 1 in things}
    image = {"id": path.stem, "file_name": f"{path.stem}.jpg", "height": ids.shape[0], "width": ids.shape[1]}
    return json.dumps({"image": image, "annotations": instance_annotations(ids, categories, path.stem)}).encode()
