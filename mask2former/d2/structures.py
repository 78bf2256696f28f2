"""Containers for boxes, masks, instances and batches of images."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.boxes import Boxes, BoxMode
    from mask2former.d2.bundled.image_list import ImageList
    from mask2former.d2.bundled.instances import Instances
    from mask2former.d2.bundled.masks import BitMasks, PolygonMasks
else:
    from detectron2.structures import (
        BitMasks,
        Boxes,
        BoxMode,
        ImageList,
        Instances,
        PolygonMasks,
    )

__all__ = ["BitMasks", "BoxMode", "Boxes", "ImageList", "Instances", "PolygonMasks"]
