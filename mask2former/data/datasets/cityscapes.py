"""Cityscapes with fine annotations. Layout and preparation: `datasets/README.md`.

Metadata that evaluation needs is named as in Detectron2: `image_dir` and `gt_dir` are the folders of a split.
"""

import os
from pathlib import Path
from typing import Any

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.coco import instance_dicts, panoptic_dicts, read_annotations
from mask2former.data.datasets.metadata import (
    check_folder,
    instance_metadata,
    is_free,
    load_categories,
    unseparated_metadata,
)
from mask2former.data.datasets.semantic import register_semantic, semantic_dicts

FOLDER = "cityscapes"
IMAGE_SUFFIX = "_leftImg8bit.png"
TRAIN_IDS_SUFFIX = "_gtFine_labelTrainIds.png"

_HINT = (
    "download Cityscapes to $DETECTRON2_DATASETS (datasets/README.md) and run `python datasets/prepare_cityscapes.py`"
)


def register_cityscapes(root: str | os.PathLike[str]) -> None:
    """Registers all Cityscapes sets below `root`, except names in use. The test split has no labels."""
    folder = Path(root) / FOLDER
    for split in ("train", "val", "test"):
        if is_free(f"cityscapes_fine_sem_seg_{split}"):
            _register_semantic(folder, split)
        if is_free(f"cityscapes_fine_instance_seg_{split}"):
            _register_instance(folder, split)
    for split in ("train", "val"):
        if is_free(f"cityscapes_fine_panoptic_{split}"):
            _register_panoptic(folder, split)


def instances_json(folder: Path, split: str) -> Path:
    """COCO instance annotations of a split, which `datasets/prepare_cityscapes.py` makes."""
    return folder / "gtFine" / f"cityscapes_instance_{split}.json"


def _folders(folder: Path, split: str) -> dict[str, Any]:
    """Those of a split; that of the labels, which the test set has not, is None there."""
    gt_dir = None if split == "test" else str(folder / "gtFine" / split)
    return {"image_dir": str(folder / "leftImg8bit" / split), "gt_dir": gt_dir}


def _register_semantic(folder: Path, split: str) -> None:
    folders = _folders(folder, split)
    register_semantic(
        f"cityscapes_fine_sem_seg_{split}",
        image_root=folders["image_dir"],
        label_root=folders["gt_dir"],
        classes=load_categories("cityscapes_19"),
        image_suffix=IMAGE_SUFFIX,
        label_suffix=TRAIN_IDS_SUFFIX,
        missing_hint=_HINT,
        evaluator_type="cityscapes_sem_seg",
        **folders,
    )


def _register_instance(folder: Path, split: str) -> None:
    name, folders = f"cityscapes_fine_instance_seg_{split}", _folders(folder, split)
    metadata = instance_metadata([category for category in load_categories("cityscapes_19") if category["isthing"]])
    source = str(instances_json(folder, split))

    def load() -> list[dict[str, Any]]:
        check_folder(folders["image_dir"], name, _HINT)
        if split == "test":
            return semantic_dicts(folders["image_dir"], None, image_suffixes=(IMAGE_SUFFIX,), missing_hint=_HINT)
        return instance_dicts(
            read_annotations(source, _HINT),
            source,
            image_root=folders["image_dir"],
            contiguous_ids=metadata["thing_dataset_id_to_contiguous_id"],
        )

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type="cityscapes_instance", **folders, **metadata)


def _register_panoptic(folder: Path, split: str) -> None:
    name, folders = f"cityscapes_fine_panoptic_{split}", _folders(folder, split)
    metadata = unseparated_metadata(load_categories("cityscapes_19"))
    panoptic_root = folder / "gtFine" / f"cityscapes_panoptic_{split}"
    source = f"{panoptic_root}.json"

    def load() -> list[dict[str, Any]]:
        content = read_annotations(source, _HINT)
        for path in (folders["image_dir"], panoptic_root, folders["gt_dir"]):
            check_folder(path, name, _HINT)
        for image in content["images"]:  # cityscapesscripts writes a name that no file has
            image["file_name"] = _in_city(image["id"], IMAGE_SUFFIX)
        records = panoptic_dicts(
            content, source, image_root=folders["image_dir"], panoptic_root=panoptic_root, metadata=metadata
        )
        for record in records:
            path = os.path.join(folders["gt_dir"], _in_city(record["image_id"], TRAIN_IDS_SUFFIX))
            record["sem_seg_file_name"] = path
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        evaluator_type="cityscapes_panoptic_seg",
        image_root=folders["image_dir"],
        gt_dir=folders["gt_dir"],
        panoptic_root=str(panoptic_root),
        panoptic_json=source,
        ignore_label=255,
        label_divisor=1000,
        **metadata,
    )


def _in_city(image_id: str, suffix: str) -> str:
    """Path below a split's folder; an image id is `city_sequence_frame`."""
    return f"{image_id.split('_')[0]}/{image_id}{suffix}"
