"""Geometric transforms, and the random augmentations that produce them."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "CropTransform",
    "FixedSizeCrop",
    "HFlipTransform",
    "NoOpTransform",
    "PadTransform",
    "RandomCrop",
    "RandomFlip",
    "ResizeScale",
    "ResizeShortestEdge",
    "ResizeTransform",
    "Transform",
    "TransformList",
]

if TYPE_CHECKING:
    from fvcore.transforms.transform import *

    from mask2former.d2.bundled.augmentation import *
    from mask2former.d2.bundled.transforms import *
else:
    globals().update(objects(__all__, bundled=("augmentation", "transforms"), official="data.transforms"))
