"""The masks of one image, made in the form that is asked for and not before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch

from mask2former.data.rle import RLE, encode_mask
from mask2former.modeling.masks import PackedMasks

# N masks, H and W height and width of the image


class Masks(ABC):
    """N masks. A number as index gives one, bool (H, W), as does iteration."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """H and W."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> np.ndarray: ...

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def dense(self) -> np.ndarray:
        """Bool (N, H, W)."""
        masks = np.empty((len(self), *self.size), dtype=bool)
        for index, mask in enumerate(self):
            masks[index] = mask
        return masks

    def rle(self) -> list[RLE]:
        """COCO's compressed run lengths, whose counts are bytes; `mask2former.data.rle.to_json` makes them text."""
        return list(self._rles)

    def polygons(self, tolerance: float = 0.0) -> list[list[np.ndarray]]:
        """The outer outlines of each mask, int32 (K, 2), x and y of pixels on its rim; holes are not told.

        Args:
            tolerance: pixels that outlines may be off, to have fewer corners.
        """
        return [_outlines(mask, tolerance) for mask in self]

    def packed(self) -> PackedMasks:
        """Eight masks to a byte."""
        return PackedMasks.pack(torch.from_numpy(self.dense()))

    def boxes(self) -> np.ndarray:
        """The smallest boxes around the masks, float32 (N, 4): x0, y0, x1, y1, far edges exclusive; 0 if empty."""
        boxes = np.asarray(mask_util.toBbox(self._rles), dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def areas(self) -> np.ndarray:
        """Pixels inside each mask, int64 (N,)."""
        return np.asarray(mask_util.area(self._rles), dtype=np.int64).reshape(-1)

    @cached_property
    def _rles(self) -> list[RLE]:
        return [encode_mask(mask) for mask in self]


class InstanceMasks(Masks):
    """Masks that may overlap: `pred_masks` of a model's instances, a tensor (N, H, W) or compact masks."""

    def __init__(self, masks: Any) -> None:
        self._given = masks

    @cached_property
    def _masks(self) -> Any:
        return self._given.cpu()

    @property
    def size(self) -> tuple[int, int]:
        return int(self._given.shape[1]), int(self._given.shape[2])

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, index: int) -> np.ndarray:
        mask: np.ndarray = self._masks[index].numpy().astype(bool, copy=False)
        return mask

    def packed(self) -> PackedMasks:
        return self._masks if isinstance(self._masks, PackedMasks) else super().packed()

    @cached_property
    def _rles(self) -> list[RLE]:
        known = getattr(self._masks, "rles", None)  # of masks that are run lengths already
        return [encode_mask(mask) for mask in self] if known is None else list(known)


class RegionMasks(Masks):
    """Masks that are the regions of a map, int (H, W): mask n is where the map has the n-th value."""

    def __init__(self, regions: np.ndarray, values: Sequence[int]) -> None:
        self._regions, self._values = regions, values

    @property
    def size(self) -> tuple[int, int]:
        return self._regions.shape[0], self._regions.shape[1]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> np.ndarray:
        mask: np.ndarray = self._regions == self._values[index]
        return mask


def _outlines(mask: np.ndarray, tolerance: float) -> list[np.ndarray]:
    mode = cv2.CHAIN_APPROX_SIMPLE
    contours, _ = cv2.findContours(np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_EXTERNAL, mode)
    if tolerance > 0:
        contours = [cv2.approxPolyDP(contour, tolerance, True) for contour in contours]
    return [contour[:, 0] for contour in contours]
