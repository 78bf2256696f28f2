"""Boundaries of masks (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
CVPR 2021): the pixels of a mask that lie within d pixels of its contour.

Boundary AP and boundary PQ are AP and PQ with min(mask IoU, boundary IoU) in the place of mask IoU.
Legend: H and W image height and width.
"""

import math

import cv2
import numpy as np
import pycocotools.mask as mask_util

from mask2former.data.rle import RLE, encode_mask

DILATION_RATIO = 0.02  # of the image diagonal


def boundary_width(height: int, width: int) -> int:
    """d in pixels of an image: 2 % of its diagonal, at least 1."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def mask_boundary(mask: np.ndarray, width: int | None = None) -> np.ndarray:
    """The mask (H, W) without its erosion by a square of 2 d + 1 pixels: bool (H, W). The image's edge is contour.

    Args:
        mask: bool (H, W).
        width: d in pixels; `boundary_width` of the image by default.
    """
    if width is None:
        width = boundary_width(*mask.shape)
    result = np.zeros(mask.shape, dtype=bool)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return result
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cropped = np.ascontiguousarray(mask[window]).view(np.uint8)
    padded = cv2.copyMakeBorder(cropped, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    side = 2 * width + 1
    inner = cv2.erode(padded, np.ones((side, side), dtype=np.uint8))[1:-1, 1:-1]
    result[window] = cropped > inner
    return result


def boundary_iou(
    first: np.ndarray, second: np.ndarray, *, width: int | None = None, ignored: np.ndarray | None = None
) -> float:
    """IoU of the boundaries of two masks bool (H, W), pixels of `ignored` left out; 0 when both are empty."""
    first, second = mask_boundary(first, width), mask_boundary(second, width)
    if ignored is not None:
        first, second = first & ~ignored, second & ~ignored
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0


def rle_boundary(rle: RLE) -> RLE:
    """Compressed COCO run lengths of the boundary of a mask given likewise."""
    return encode_mask(mask_boundary(mask_util.decode(rle).astype(bool)))
