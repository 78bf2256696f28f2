"""COCO-Stuff-10k: 171 classes of things and stuff. Layout and preparation: `datasets/README.md`."""

import os
from pathlib import Path

from mask2former.data.datasets.metadata import is_free, load_categories
from mask2former.data.datasets.semantic import register_semantic

FOLDER = Path("coco", "coco_stuff_10k")
SPLITS = ("train", "test")


def register_coco_stuff(root: str | os.PathLike[str]) -> None:
    """Registers `coco_2017_{train,test}_stuff_10k_sem_seg`, except names in use."""
    for split in SPLITS:
        if is_free(f"coco_2017_{split}_stuff_10k_sem_seg"):
            register_semantic(
                f"coco_2017_{split}_stuff_10k_sem_seg",
                image_root=Path(root) / FOLDER / "images_detectron2" / split,
                label_root=Path(root) / FOLDER / "annotations_detectron2" / split,
                classes=load_categories("coco_stuff_10k"),
                image_suffix=".jpg",
                missing_hint="download COCO-Stuff 10k to $DETECTRON2_DATASETS (datasets/README.md) and run "
                "`python datasets/prepare_coco_stuff_10k.py`",
            )
