"""Geometric transforms, and the random augmentations that produce them."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from fvcore.transforms.transform import (
        CropTransform,
        HFlipTransform,
        NoOpTransform,
        PadTransform,
        Transform,
        TransformList,
        VFlipTransform,
    )

    from mask2former.d2.bundled.augmentation import (
        AugInput,
        Augmentation,
        AugmentationList,
        apply_augmentations,
    )
    from mask2former.d2.bundled.transforms import (
        FixedSizeCrop,
        RandomCrop,
        RandomFlip,
        ResizeScale,
        ResizeShortestEdge,
        ResizeTransform,
    )
else:
    from detectron2.data.transforms import (
        AugInput,
        Augmentation,
        AugmentationList,
        CropTransform,
        FixedSizeCrop,
        HFlipTransform,
        NoOpTransform,
        PadTransform,
        RandomCrop,
        RandomFlip,
        ResizeScale,
        ResizeShortestEdge,
        ResizeTransform,
        Transform,
        TransformList,
        VFlipTransform,
        apply_augmentations,
    )

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
    "VFlipTransform",
    "apply_augmentations",
]
