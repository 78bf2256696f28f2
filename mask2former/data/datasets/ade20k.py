"""ADE20K: the 150 classes of the scene parsing challenge, their 100 things, and the full set's 847 classes.

Layout and preparation: `datasets/README.md`.
"""

import os
from pathlib import Path

from mask2former.data.datasets.coco import register_coco_instances, register_coco_panoptic
from mask2former.data.datasets.metadata import is_free, load_categories
from mask2former.data.datasets.semantic import register_semantic

FOLDER = "ADEChallengeData2016"
FULL_FOLDER = "ADE20K_2021_17_01"
SPLITS = {"train": "training", "val": "validation"}
"""Split of the registered names → folder of the release."""
FULL_IGNORE_LABEL = 65535

_HINT = "download ADE20K to $DETECTRON2_DATASETS (datasets/README.md) and run `python datasets/{}.py`"


def register_ade20k(root: str | os.PathLike[str]) -> None:
    """Registers all ADE20K sets below `root`, except names in use."""
    for split in SPLITS:
        _register_semantic(Path(root), split)
        _register_full(Path(root), split)
        _register_instance(Path(root), split)
        _register_panoptic(Path(root), split)


def _register_semantic(root: Path, split: str) -> None:
    if is_free(f"ade20k_sem_seg_{split}"):
        register_semantic(
            f"ade20k_sem_seg_{split}",
            image_root=root / FOLDER / "images" / SPLITS[split],
            label_root=root / FOLDER / "annotations_detectron2" / SPLITS[split],
            classes=load_categories("ade20k_150"),
            image_suffix=".jpg",
            missing_hint=_HINT.format("prepare_ade20k_sem_seg"),
        )


def _register_full(root: Path, split: str) -> None:
    if is_free(f"ade20k_full_sem_seg_{split}"):
        register_semantic(
            f"ade20k_full_sem_seg_{split}",
            image_root=root / FULL_FOLDER / "images_detectron2" / SPLITS[split],
            label_root=root / FULL_FOLDER / "annotations_detectron2" / SPLITS[split],
            classes=load_categories("ade20k_full_847"),
            ignore_label=FULL_IGNORE_LABEL,
            image_suffix=".jpg",
            label_suffix=".tif",
            missing_hint=_HINT.format("prepare_ade20k_full_sem_seg"),
        )


def _register_instance(root: Path, split: str) -> None:
    if is_free(f"ade20k_instance_{split}"):
        register_coco_instances(
            f"ade20k_instance_{split}",
            image_root=root / FOLDER / "images" / SPLITS[split],
            json_file=root / FOLDER / f"ade20k_instance_{split}.json",
            categories=load_categories("ade20k_instance_100"),
            missing_hint=_HINT.format("prepare_ade20k_instance"),
        )


def _register_panoptic(root: Path, split: str) -> None:
    if is_free(f"ade20k_panoptic_{split}"):
        register_coco_panoptic(
            f"ade20k_panoptic_{split}",
            image_root=root / FOLDER / "images" / SPLITS[split],
            panoptic_root=root / FOLDER / f"ade20k_panoptic_{split}",
            panoptic_json=root / FOLDER / f"ade20k_panoptic_{split}.json",
            categories=load_categories("ade20k_150"),
            instances_json=root / FOLDER / f"ade20k_instance_{split}.json",
            # The label maps have things that no instance is annotated of: the panoptic PNGs cannot stand in.
            sem_seg_root=root / FOLDER / "annotations_detectron2" / SPLITS[split],
            sem_seg_required=True,
            missing_hint=_HINT.format("prepare_ade20k_panoptic"),
            evaluator_type="ade20k_panoptic_seg",
        )
