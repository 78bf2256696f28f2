"""Mapillary Vistas v1.2, whose classes are shipped, and v2.0, whose classes its own files list.

Layout and preparation: `datasets/README.md`.
"""

import json
import os
from pathlib import Path
from typing import Any

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.coco import register_coco_instances, register_coco_panoptic
from mask2former.data.datasets.metadata import (
    Category,
    check_folder,
    is_free,
    load_categories,
    semantic_metadata,
)
from mask2former.data.datasets.semantic import register_semantic, semantic_dicts
from mask2former.data.images import DataError

FOLDER = "mapillary_vistas"
SPLITS = {"train": "training", "val": "validation"}
"""Split of the registered names → folder of the release."""
IGNORE_LABEL = 65
"""Index of "Unlabeled", the last label of v1.2, in its label maps."""

_UNLABELED = "void--unlabeled"
_HINT = (
    "unpack Mapillary Vistas v1.2 there; of the v2.0 release, link {training,validation}/v1.2/{labels,instances,"
    "panoptic} one folder up (datasets/README.md)"
)
_HINT_V2 = "unpack the v2.0 release of Mapillary Vistas there (datasets/README.md)"


def register_mapillary_vistas(root: str | os.PathLike[str]) -> None:
    """Registers all Mapillary Vistas sets below `root`, except names in use."""
    folder = Path(root) / FOLDER
    for split in SPLITS:
        _register_v1(folder, split)
        if is_free(f"mapillary_vistas_v2_sem_seg_{split}"):
            _register_v2_semantic(folder, split)
        if is_free(f"mapillary_vistas_v2_panoptic_{split}"):
            _register_v2_panoptic(folder, split)


def instances_json(folder: Path, split: str) -> Path:
    """COCO instance annotations of v1.2, which `datasets/prepare_mapillary_instance.py` makes."""
    return folder / f"mapillary_vistas_instance_{split}.json"


def _register_v1(folder: Path, split: str) -> None:
    categories = load_categories("mapillary_vistas_65")
    names = semantic_metadata(categories)  # as published, both lists hold all classes
    data = folder / SPLITS[split]
    if is_free(f"mapillary_vistas_sem_seg_{split}"):
        register_semantic(
            f"mapillary_vistas_sem_seg_{split}",
            image_root=data / "images",
            label_root=data / "labels",
            classes=categories,
            ignore_label=IGNORE_LABEL,
            image_suffix=".jpg",
            missing_hint=_HINT,
        )
    if is_free(f"mapillary_vistas_panoptic_{split}"):
        register_coco_panoptic(
            f"mapillary_vistas_panoptic_{split}",
            image_root=data / "images",
            panoptic_root=data / "panoptic",
            panoptic_json=data / "panoptic" / "panoptic_2018.json",
            categories=categories,
            instances_json=instances_json(folder, split),
            sem_seg_root=data / "labels",
            sem_seg_required=True,
            missing_hint=_HINT,
            evaluator_type="mapillary_vistas_panoptic_seg",
            ignore_label=IGNORE_LABEL,
            thing_classes=names["stuff_classes"],
            thing_colors=names["stuff_colors"],
        )
    if is_free(f"mapillary_vistas_instance_{split}"):
        register_coco_instances(
            f"mapillary_vistas_instance_{split}",
            image_root=data / "images",
            json_file=instances_json(folder, split),
            categories=[category for category in categories if category["isthing"]],
            missing_hint="run `python datasets/prepare_mapillary_instance.py`",
        )


def _register_v2_panoptic(folder: Path, split: str) -> None:
    data = folder / SPLITS[split]
    register_coco_panoptic(
        f"mapillary_vistas_v2_panoptic_{split}",
        image_root=data / "images",
        panoptic_root=data / "v2.0" / "panoptic",
        panoptic_json=data / "v2.0" / "panoptic" / "panoptic_2020.json",
        missing_hint=_HINT_V2,
        evaluator_type="mapillary_vistas_panoptic_seg",
    )


def _register_v2_semantic(folder: Path, split: str) -> None:
    """v2.0 is not in the published tables: classes are read from its config at first use."""
    name = f"mapillary_vistas_v2_sem_seg_{split}"
    image_root, label_root = folder / SPLITS[split] / "images", folder / SPLITS[split] / "v2.0" / "labels"

    def load() -> list[dict[str, Any]]:
        for path in (image_root, label_root):
            check_folder(path, name, _HINT_V2)
        classes = read_config(folder / "config_v2.0.json")
        MetadataCatalog.get(name).set(ignore_label=len(classes), **semantic_metadata(classes))
        return semantic_dicts(image_root, label_root, image_suffixes=(".jpg",), missing_hint=_HINT_V2)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(image_root=str(image_root), sem_seg_root=str(label_root), evaluator_type="sem_seg")


def read_config(path: Path) -> list[Category]:
    """Classes of a release's config file in the order of label maps, without the last one, which is void.

    Raises:
        DataError: the last label is not "void--unlabeled", or the file is no config.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}; {_HINT_V2}")
    try:
        labels = json.loads(path.read_bytes())["labels"]
        names = [label["name"] for label in labels]
        classes = [{"name": label["readable"], "color": label["color"]} for label in labels[:-1]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no config of Mapillary Vistas: {error!r}") from error
    if _UNLABELED not in names[-1:]:
        raise DataError(f"{path}: the last label must be {_UNLABELED}, which is ignored; labels are {names[-3:]}")
    return classes
