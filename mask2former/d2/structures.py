"""Containers for boxes, masks, instances and batches of images."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = ["BitMasks", "BoxMode", "Boxes", "ImageList", "Instances", "PolygonMasks"]

if TYPE_CHECKING:
    from mask2former.d2.bundled.boxes import *
    from mask2former.d2.bundled.image_list import *
    from mask2former.d2.bundled.instances import *
    from mask2former.d2.bundled.masks import *
else:
    globals().update(objects(__all__, bundled=("boxes", "image_list", "instances", "masks"), official="structures"))
