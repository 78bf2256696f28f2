"""Small layers and the shape description that builders pass on."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = ["CNNBlockBase", "Conv2d", "FrozenBatchNorm2d", "ShapeSpec", "get_norm"]

if TYPE_CHECKING:
    from mask2former.d2.bundled.layers import *
else:
    globals().update(objects(__all__, bundled=("layers",), official="layers"))
