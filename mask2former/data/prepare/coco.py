"""COCO: semantic labels of the panoptic annotations, and the label maps of COCO-Stuff 10k."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mask2former.data.datasets.coco import read_annotations
from mask2former.data.datasets.coco_stuff import SPLITS as STUFF_SPLITS
from mask2former.data.datasets.metadata import load_categories
from mask2former.data.images import DataError, read_panoptic_png
from mask2former.data.prepare.convert import check_count, check_partners, convert_files, encode_image, list_sources
from mask2former.data.targets import panoptic_targets
from mask2former.files import replacing

COUNTS = {"train": 118287, "val": 5000}
STUFF_COUNTS = {"train": 9000, "test": 1000}
IGNORE_LABEL = 255

_HINT = "unpack COCO's panoptic annotations into $DETECTRON2_DATASETS/coco, or give --root"
_STUFF_HINT = "unpack cocostuff-10k-v1.1.zip into $DETECTRON2_DATASETS/coco/coco_stuff_10k, or give --root"


def prepare_semantic(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes `panoptic_semseg_{train,val}2017/` of the panoptic PNGs: 133 contiguous classes, 255 where void."""
    table = {category["id"]: index for index, category in enumerate(load_categories("coco_panoptic_133"))}
    annotations = {
        split: read_annotations(str(root / "annotations" / f"panoptic_{split}2017.json"), _HINT)["annotations"]
        for split in COUNTS
    }
    for split, records in annotations.items():
        check_count(len(records), COUNTS[split], f"{root}, panoptic_{split}2017")
        source, target = root / f"panoptic_{split}2017", root / f"panoptic_semseg_{split}2017"
        pngs = list_sources(source, (".png",), _HINT)
        check_partners([Path(record["file_name"]).stem for record in records], pngs, source, _HINT)
        jobs = [((record["file_name"], record["segments_info"]), target / record["file_name"]) for record in records]
        make = partial(semantic_labels, table, source)
        convert_files(make, jobs, title=f"semantic {split}", workers=workers, overwrite=overwrite)


def semantic_labels(table: dict[int, int], folder: Path, source: tuple[str, list[dict[str, Any]]]) -> bytes:
    """PNG of the classes of a panoptic PNG; crowds have theirs too.

    Args:
        table: category id → contiguous class.
        source: name of the PNG in `folder`, and its `segments_info`.
    """
    path = str(folder / source[0])
    unknown = {segment["category_id"] for segment in source[1]} - set(table)
    if unknown:
        raise DataError(f"{path}: unknown category ids {sorted(unknown)} in its annotation")
    segments = [{"id": segment["id"], "category_id": table[segment["category_id"]]} for segment in source[1]]
    labels = panoptic_targets(read_panoptic_png(path), segments, path)
    classes = np.append(labels.classes, IGNORE_LABEL)[labels.index]
    return encode_image(classes.astype(np.uint8))


def prepare_stuff_10k(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes `annotations_detectron2/{train,test}/` of COCO-Stuff 10k, and `images_detectron2/` beside it.

    The label maps have 171 contiguous classes, and 255 where the release has none. Images are linked or copied.
    """
    categories = load_categories("coco_stuff_10k")
    lookup = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    lookup[[category["id"] for category in categories]] = np.arange(len(categories))
    images = list_sources(root / "images", (".jpg",), _STUFF_HINT)
    maps = list_sources(root / "annotations", (".mat",), _STUFF_HINT)
    for split in STUFF_SPLITS:
        path = root / "imageLists" / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"no file {path.absolute()}; {_STUFF_HINT}")
        names = path.read_text(encoding="utf-8").split()
        check_count(len(names), STUFF_COUNTS[split], str(path))
        for files, kind in ((images, "images"), (maps, "annotations")):
            check_partners(names, files, root / kind, _STUFF_HINT)
        for name in names:
            link_or_copy(root / "images" / f"{name}.jpg", root / "images_detectron2" / split / f"{name}.jpg")
        target = root / "annotations_detectron2" / split
        jobs = [(root / "annotations" / f"{name}.mat", target / f"{name}.png") for name in names]
        make = partial(stuff_labels, lookup)
        convert_files(make, jobs, title=f"COCO-Stuff {split}", workers=workers, overwrite=overwrite)


def stuff_labels(lookup: np.ndarray, path: Path) -> bytes:
    """PNG of the classes in a MATLAB file, whose `S` (H, W) holds 0..182; `lookup` (256,) makes them contiguous."""
    try:
        labels = loadmat(os.fspath(path), variable_names=["S"])["S"]
    except (MatReadError, ValueError, KeyError, NotImplementedError, TypeError) as error:
        raise DataError(f"{path}: no MATLAB file with a label map S: {error!r}") from error
    if labels.max() >= len(lookup):
        raise DataError(f"{path}: label {labels.max()} is none of COCO-Stuff")
    return encode_image(lookup[labels])


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, which takes no room, or a copy where links are not possible; a target that exists stays."""
    if target.exists():
        return
    with replacing(target, sync=False) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
