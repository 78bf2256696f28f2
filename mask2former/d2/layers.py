"""Small layers and the shape description that builders pass on."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.layers import (
        CNNBlockBase,
        Conv2d,
        FrozenBatchNorm2d,
        ShapeSpec,
        get_norm,
    )
else:
    from detectron2.layers import (
        CNNBlockBase,
        Conv2d,
        FrozenBatchNorm2d,
        ShapeSpec,
        get_norm,
    )

__all__ = ["CNNBlockBase", "Conv2d", "FrozenBatchNorm2d", "ShapeSpec", "get_norm"]
