"""Registered data sets; importing this registers the built-in ones of $DETECTRON2_DATASETS (./datasets)."""

import os

from .coco import register_coco, register_coco_instances, register_coco_panoptic
from .metadata import dataset_metadata, load_categories
from .shapes import register_shapes

__all__ = ["dataset_metadata", "load_categories", "register_coco_instances", "register_coco_panoptic"]

_ROOT = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
for _register in (register_coco, register_shapes):
    _register(_ROOT)
