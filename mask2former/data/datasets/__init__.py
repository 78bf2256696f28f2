"""Registered data sets; importing this registers the built-in ones of $DETECTRON2_DATASETS (./datasets)."""

import os

from .ade20k import register_ade20k
from .cityscapes import register_cityscapes
from .coco import register_coco, register_coco_instances, register_coco_panoptic
from .coco_stuff import register_coco_stuff
from .mapillary_vistas import register_mapillary_vistas
from .metadata import dataset_metadata, load_categories
from .semantic import register_images, register_semantic
from .shapes import register_shapes

__all__ = [
    "dataset_metadata",
    "load_categories",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_images",
    "register_semantic",
]

_ROOT = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
for _register in (
    register_coco,
    register_coco_stuff,
    register_ade20k,
    register_cityscapes,
    register_mapillary_vistas,
    register_shapes,
):
    _register(_ROOT)
