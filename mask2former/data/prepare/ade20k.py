"""ADE20K: label maps of contiguous ids, instances, and panoptic segments made of both.

The release has label maps (0 = other, 1..150), and instance maps (red = one of 100 things, green = its number).
"""

import json
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.data.datasets.ade20k import FULL_IGNORE_LABEL, SPLITS
from mask2former.data.datasets.metadata import load_categories
from mask2former.data.images import DataError, check_size, id_to_rgb, read_image, read_label_map, read_panoptic_png
from mask2former.data.prepare.convert import (
    check_count,
    check_partners,
    convert_files,
    convert_to_json,
    encode_image,
    list_sources,
)
from mask2former.data.prepare.segments import instance_annotations, segments_of
from mask2former.files import write_bytes

COUNTS = {"train": 20210, "val": 2000}
FULL_COUNTS = {"train": 25574, "val": 2000}
FULL_SHORT_SIDE = 512
"""Pixels. Images of the full set are of any size; larger ones are reduced to this."""

_HINT = "unpack ADEChallengeData2016.zip into $DETECTRON2_DATASETS, or give --root"
_INSTANCE_HINT = "unpack annotations_instance.tar into the folder ADEChallengeData2016"
_FULL_HINT = "unpack the full data set of 2021-01-17 into $DETECTRON2_DATASETS, or give --root"


def prepare_semantic(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes `annotations_detectron2/`: classes 0..149, 255 where the release has 0."""
    for split, labels in _splits(root, "annotations", _HINT):
        target = root / "annotations_detectron2" / SPLITS[split]
        jobs = [(root / "annotations" / SPLITS[split] / file, target / file) for file in labels.values()]
        convert_files(shift_labels, jobs, title=f"semantic {split}", workers=workers, overwrite=overwrite)


def shift_labels(path: Path) -> bytes:
    """PNG of a label map, with 0..150 turned into 255, 0..149."""
    labels = read_label_map(path)
    if labels.max() > 150:
        raise DataError(f"{path}: label {labels.max()} is above 150; this is no label map of the release")
    return encode_image((labels - 1).astype(np.uint8))  # 0 wraps around to 255


def prepare_instance(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes `ade20k_instance_{train,val}.json`."""
    categories = load_categories("ade20k_instance_100")
    for split, maps in _splits(root, "annotations_instance", _INSTANCE_HINT):
        folder = root / "annotations_instance" / SPLITS[split]
        convert_to_json(
            partial(instance_record, [category["id"] for category in categories]),
            [(folder / file, name) for name, file in maps.items()],
            root / f"ade20k_instance_{split}.json",
            categories=categories,
            title=f"instance {split}",
            workers=workers,
            overwrite=overwrite,
        )


def instance_record(category_ids: list[int], path: Path) -> bytes:
    """JSON of the image and the annotations of an instance map."""
    ids = read_instance_map(path, len(category_ids))
    categories = {int(value): category_ids[value // 256 - 1] for value in np.unique(ids[ids > 0])}
    record = {"image": _image(path, ids), "annotations": instance_annotations(ids, categories, path.stem)}
    return json.dumps(record).encode()


def prepare_panoptic(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes `ade20k_panoptic_{train,val}.json` and the folders of its PNGs, and what they are evaluated with.

    Those are label maps and instances, as `prepare_semantic` and `prepare_instance` make them.
    """
    prepare_semantic(root, workers=workers, overwrite=overwrite)
    prepare_instance(root, workers=workers, overwrite=overwrite)
    categories = load_categories("ade20k_150")
    stuff = [category["id"] for category in categories if not category["isthing"]]
    for split, labels in _splits(root, "annotations", _HINT):
        instances = root / "annotations_instance" / SPLITS[split]
        check_partners(labels, list_sources(instances, (".png",), _INSTANCE_HINT), instances, _INSTANCE_HINT)
        target = root / f"ade20k_panoptic_{split}"
        folders = (root / "annotations" / SPLITS[split], instances, target)
        convert_to_json(
            partial(panoptic_record, folders, stuff, instance_to_sceneparse()),
            [(file, name) for name, file in labels.items()],
            target.with_suffix(".json"),
            categories=categories,
            title=f"panoptic {split}",
            workers=workers,
            overwrite=overwrite,
        )


def panoptic_record(
    folders: tuple[Path, Path, Path], stuff: list[int], instance_to_class: dict[int, int], file: str
) -> bytes:
    """Writes the panoptic PNG of one image; JSON of the image and its annotation.

    Stuff is painted first, instances over it. Area and box of stuff are, as in the published annotations, those
    before: stuff that things cover wholly has no pixel in the PNG. A thing in the label map that is no instance is
    void.

    Args:
        folders: of the label maps, the instance maps, and the PNGs to write.
        stuff: contiguous classes of stuff.
        instance_to_class: class 1..100 of the instance maps → contiguous class.
    """
    labels = read_label_map(folders[0] / file) - 1
    instances = read_instance_map(folders[1] / file, len(instance_to_class))
    check_size(folders[1] / file, instances.shape, labels.shape, str(folders[0] / file))
    ids = np.zeros_like(labels)
    segments: list[dict[str, Any]] = []
    for painted in (np.where(np.isin(labels, stuff), labels + 1, 0), instances):
        for segment in segments_of(painted):
            if segment.id == 0:
                continue
            category = segment.id - 1 if painted is not instances else instance_to_class[segment.id // 256]
            ids[segment.mask] = len(segments) + 1
            record = {"id": len(segments) + 1, "category_id": category, "area": segment.area, "bbox": segment.bbox}
            segments.append({**record, "iscrowd": 0})
    write_bytes(folders[2] / file, encode_image(id_to_rgb(ids)))
    path = folders[0] / file
    annotation = {"image_id": path.stem, "file_name": file, "segments_info": segments}
    return json.dumps({"image": _image(path, ids), "annotations": [annotation]}).encode()


def read_instance_map(path: Path, num_classes: int) -> np.ndarray:
    """(H, W) int32 ids `256 * class + number`, with the class in 1..num_classes; 0 where there is no instance.

    Raises:
        DataError: the file is no RGB image, or holds another class.
    """
    classes, numbers = _red_and_green(path)
    if classes.max() > num_classes:
        raise DataError(f"{path}: class {classes.max()} (red) is above {num_classes}")
    return np.where((classes > 0) & (numbers > 0), 256 * classes + numbers, 0)


def instance_to_sceneparse() -> dict[int, int]:
    """Class 1..100 of the instance maps → contiguous class of the 150."""
    table = resources.files("mask2former.data.datasets") / "categories" / "ade20k_instance_to_sceneparse_ids.tsv"
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    return {int(row[0]): int(row[1]) - 1 for row in rows}


def prepare_full(root: Path, *, workers: int = 1, overwrite: bool = False) -> None:
    """Makes `images_detectron2/` and `annotations_detectron2/` of the full set: 847 classes in 16 bits."""
    table = {category["id"]: category["trainId"] for category in load_categories("ade20k_full_847")}
    for split, maps in _splits(root, "images/ADE", _FULL_HINT, suffix="_seg.png", counts=FULL_COUNTS):
        folder = root / "images" / "ADE" / SPLITS[split]
        images, labels = (root / kind / SPLITS[split] for kind in ("images_detectron2", "annotations_detectron2"))
        jobs = [(folder / file, labels / f"{Path(name).name}.tif") for name, file in maps.items()]
        make = partial(full_label_map, table, images)
        convert_files(make, jobs, title=f"full {split}", workers=workers, overwrite=overwrite)


def full_label_map(table: dict[int, int], image_folder: Path, path: Path) -> bytes:
    """Writes the image of a label map (`*_seg.png`), reduced to the short side; 16-bit TIFF of its classes.

    The release codes an object class as `256 * (red // 10) + green`.

    Args:
        table: object class → contiguous class; others are ignored.
    """
    image = read_image(path.with_name(path.name.replace("_seg.png", ".jpg")))
    red, green = _red_and_green(path)
    check_size(path, red.shape, image.shape[:2], "its image")
    objects = 256 * (red // 10) + green
    lookup = np.full(max(*table, int(objects.max())) + 1, FULL_IGNORE_LABEL, dtype=np.uint16)
    lookup[list(table)] = list(table.values())
    labels = lookup[objects]
    scale = FULL_SHORT_SIDE / min(labels.shape)
    if scale < 1:
        size = (round(labels.shape[1] * scale), round(labels.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    name = path.name.replace("_seg.png", ".jpg")
    write_bytes(image_folder / name, encode_image(image, "JPEG", quality=95))
    return encode_image(labels, "TIFF", compression="tiff_deflate")


def _splits(
    root: Path, folder: str, hint: str, *, suffix: str = ".png", counts: dict[str, int] = COUNTS
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each split and its source files; all are looked for before the first is converted."""
    found = {split: list_sources(root / folder / SPLITS[split], (suffix,), hint) for split in SPLITS}
    for split, files in found.items():
        check_count(len(files), counts[split], f"{root / folder / SPLITS[split]}")
        yield split, files


def _red_and_green(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two (H, W) int32 planes of an RGB file."""
    code = read_panoptic_png(path)
    return code & 255, code >> 8 & 255


def _image(path: Path, ids: np.ndarray) -> dict[str, Any]:
    return {"id": path.stem, "file_name": f"{path.stem}.jpg", "height": ids.shape[0], "width": ids.shape[1]}
