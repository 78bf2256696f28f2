"""COCO's compressed run lengths of masks."""

from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

RLE = dict[str, Any]
"""`size`, [height, width], and `counts`: bytes, which pycocotools reads, or text, which JSON holds."""


def encode_mask(mask: np.ndarray) -> RLE:
    """Run lengths of a mask (H, W), bool or integers that are not 0 inside it; counts are bytes."""
    columns = cv2.transpose(mask.astype(bool, copy=False).view(np.uint8))  # several times as fast as numpy's copy
    return mask_util.encode(columns.T[:, :, None])[0]


def to_json(rle: RLE) -> RLE:
    """The same with counts as text."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
