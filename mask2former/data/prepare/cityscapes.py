"""Cityscapes: label maps of train ids, panoptic annotations (both by cityscapesscripts) and COCO instances."""

import contextlib
import importlib
import io
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.datasets.cityscapes import IMAGE_SUFFIX, TRAIN_IDS_SUFFIX, instances_json
from mask2former.data.datasets.metadata import load_categories
from mask2former.data.images import DataError, read_label_map
from mask2former.data.prepare.convert import check_count, convert_files, convert_to_json, encode_image, list_sources
from mask2former.data.prepare.segments import instance_annotations
from mask2former.files import write_bytes

COUNTS = {"train": 2975, "val": 500}

_LABEL_IDS, _INSTANCE_IDS = "_gtFine_labelIds.png", "_gtFine_instanceIds.png"
_HINT = "unpack gtFine_trainvaltest.zip into $DETECTRON2_DATASETS/cityscapes, or give --root"


def prepare(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes all that the registered sets need beside the download, of the train and val splits.

    Those are, in `gtFine/`: `*_labelTrainIds.png`, `cityscapes_panoptic_{train,val}` (JSON and PNGs) and
    `cityscapes_instance_{train,val}.json`.
    """
    categories = load_categories("cityscapes_19")
    lookup = train_id_lookup()
    for split in COUNTS:
        folder, target = root / "gtFine" / split, root / "gtFine" / f"cityscapes_panoptic_{split}"
        options: dict[str, Any] = {"workers": workers, "overwrite": overwrite}
        labels = list_sources(folder, (_LABEL_IDS,), _HINT)
        check_count(len(labels), COUNTS[split], str(folder))
        jobs = [(folder / file, folder / (name + TRAIN_IDS_SUFFIX)) for name, file in labels.items()]
        convert_files(partial(train_ids, lookup), jobs, title=f"train ids {split}", **options)

        maps = list_sources(folder, (_INSTANCE_IDS,), _HINT)
        sources = [(folder / file, Path(name).name) for name, file in maps.items()]
        options["categories"] = categories
        convert_to_json(
            partial(panoptic_record, target), sources, target.with_suffix(".json"), title=f"panoptic {split}", **options
        )
        options["categories"] = things = [category for category in categories if category["isthing"]]
        make = partial(instance_record, {category["id"] for category in things})
        convert_to_json(make, sources, instances_json(root, split), title=f"instance {split}", **options)


def train_id_lookup() -> np.ndarray:
    """(256,) uint8: label id → train id, 255 where none, as cityscapesscripts' table says."""
    lookup = np.full(256, 255, dtype=np.uint8)
    for label in _import("cityscapesscripts.helpers.labels").labels:
        if label.id >= 0 and label.trainId >= 0:
            lookup[label.id] = label.trainId
    return lookup


def train_ids(lookup: np.ndarray, path: Path) -> bytes:
    """PNG of the train ids of a map of label ids."""
    labels = read_label_map(path)
    if labels.max() > 33:
        raise DataError(f"{path}: label {labels.max()} is none of Cityscapes")
    return encode_image(lookup[labels])


def panoptic_record(target: Path, path: Path) -> bytes:
    """Writes the panoptic PNG of one image into `target`; JSON of the image and its annotation.

    cityscapesscripts converts a whole split. It is given one of a single image, so that images are done in
    parallel, and one by one.
    """
    scripts = _import("cityscapesscripts.preparation.createPanopticImgs")
    with tempfile.TemporaryDirectory() as folder:
        city = Path(folder, "split", "city")
        city.mkdir(parents=True)
        shutil.copy(path, city)  # not everybody may make links on Windows
        with contextlib.redirect_stdout(io.StringIO()):
            scripts.convert2panoptic(folder, folder, setNames=["split"])
        content = json.loads(Path(folder, "cityscapes_panoptic_split.json").read_bytes())
        (annotation,) = content["annotations"]
        png = Path(folder, "cityscapes_panoptic_split", annotation["file_name"]).read_bytes()
    write_bytes(target / annotation["file_name"], png)
    return json.dumps({"image": content["images"][0], "annotations": [annotation]}).encode()


def instance_record(things: set[int], path: Path) -> bytes:
    """JSON of the image and the annotations of a map of instance ids, `1000 * label + number`.

    Below 1000 lies what is not told apart, such as groups: a crowd, which is not learnt from.
    """
    ids = read_label_map(path)
    categories = {value: value // 1000 if value >= 1000 else value for value in np.unique(ids).tolist()}
    categories = {value: category for value, category in categories.items() if category in things}
    name = path.name.removesuffix(_INSTANCE_IDS)
    annotations = instance_annotations(ids, categories, name, crowds=range(1000))
    image = {"id": name, "file_name": f"{path.parent.name}/{name}{IMAGE_SUFFIX}"}
    image.update(height=ids.shape[0], width=ids.shape[1])
    return json.dumps({"image": image, "annotations": annotations}).encode()


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{error}; run `pip install 'mask2former[cityscapes]'`, which Cityscapes needs") from error
