"""The synthetic set, small and under a name of one's own, and a small model's settings for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import register_coco_panoptic
from mask2former.data.datasets.shapes import CATEGORIES, write_split
from tests.helpers.models import small_cfg


@contextmanager
def registered_shapes(folder: Path, prefix: str, **counts: int) -> Iterator[None]:
    """Draw so many images of 64 pixels of each split into a folder; `PREFIX_SPLIT` is their data set inside."""
    for split, count in counts.items():
        list(write_split(folder, split, count, size=(64, 64)))
        register_coco_panoptic(
            f"{prefix}_{split}",
            image_root=folder / f"{split}2017",
            panoptic_root=folder / f"panoptic_{split}2017",
            panoptic_json=folder / "annotations" / f"panoptic_{split}2017.json",
            categories=CATEGORIES,
        )
    try:
        yield
    finally:
        for split in counts:
            DatasetCatalog.remove(f"{prefix}_{split}")
            MetadataCatalog.remove(f"{prefix}_{split}")


def shapes_cfg(train: str, test: str, **changes: object) -> CfgNode:
    """Return `small_cfg` for such sets, two images a step, with changes written A__B=value."""
    settings: dict[str, object] = {
        "DATASETS__TRAIN": (train,),
        "DATASETS__TEST": (test,),
        "MODEL__SEM_SEG_HEAD__NUM_CLASSES": len(CATEGORIES),
        "INPUT__DATASET_MAPPER_NAME": "coco_panoptic_lsj",
        "INPUT__IMAGE_SIZE": 64,
        "INPUT__MIN_SIZE_TEST": 64,
        "DATALOADER__NUM_WORKERS": 0,
        "SOLVER__IMS_PER_BATCH": 2,
    }
    return small_cfg(**{**settings, **changes})
