"""From annotations to the classes and masks that a model is trained on.

Targets are built on the unaugmented image, where every contradiction in the data is an error. A `Targets`
object then follows the image through its transforms, and gives one class and one bool mask per object that is
still visible.

Shapes: H height, W width, n objects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from pycocotools import mask as mask_api
from torch import Tensor

from mask2former.d2.transforms import Transform
from mask2former.data.images import DataError

_WIDE_NONE = 256**3 - 1


class Targets(Protocol):
    """What a task trains on, before augmentation."""

    def category_map(self) -> np.ndarray:
        """(H, W) class of each pixel, -1 where there is none, packed by `pack_labels`."""
        ...

    def transformed(self, transform: Transform, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Classes (n,) int64 and masks (n, H, W) bool after `transform`, which gives (height, width) `size`.

        Objects without a pixel left are dropped.
        """
        ...


@dataclass(frozen=True)
class SegmentTargets:
    """Segments that do not overlap.

    Attributes:
        index: (H, W) number of the segment at each pixel, -1 where there is none.
        classes: (n,) int64, class of each segment.
    """

    index: np.ndarray
    classes: np.ndarray

    def category_map(self) -> np.ndarray:
        return pack_labels(np.append(self.classes, -1)[self.index])

    def transformed(self, transform: Transform, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index = unpack_labels(transform.apply_segmentation(pack_labels(self.index)))
        areas = np.bincount((index + 1).ravel(), minlength=len(self.classes) + 1)[1:]
        visible = np.flatnonzero(areas)
        masks = index == visible.astype(index.dtype)[:, None, None]
        return torch.from_numpy(self.classes[visible]), torch.from_numpy(masks)


@dataclass(frozen=True)
class AnnotationTargets:
    """Objects that may overlap, as COCO's polygons (in pixels) or run-length codes.

    Polygons are drawn after the transform, at full precision.
    """

    segmentations: Sequence[Any]
    classes: np.ndarray

    def category_map(self) -> np.ndarray:
        raise DataError("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA needs one category per pixel; instances may overlap")

    def transformed(self, transform: Transform, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        masks = np.zeros((len(self.segmentations), *size), dtype=bool)
        for mask, segmentation in zip(masks, self.segmentations, strict=True):
            mask[:] = _transform_segmentation(segmentation, transform, size)
        visible = masks.any(axis=(1, 2))
        return torch.from_numpy(self.classes[visible]), torch.from_numpy(masks[visible])


def panoptic_targets(ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], source: str) -> SegmentTargets:
    """Targets of a panoptic map; crowd segments and void are none.

    Args:
        ids: (H, W) int segment ids, 0 where void.
        segments_info: the segments, with contiguous `category_id`.
        source: file of the ids, for the message.

    Raises:
        DataError: a segment has no pixel in the map, or the map has an id that no segment describes.
    """
    kept = [segment for segment in segments_info if not segment.get("iscrowd", 0)]
    crowd = [segment for segment in segments_info if segment.get("iscrowd", 0)]
    known = np.array([segment["id"] for segment in kept + crowd] + [0], dtype=ids.dtype)
    numbers = np.r_[np.arange(len(kept)), np.full(len(crowd) + 1, -1)]

    # Ids are looked up once per run of equal pixels: far fewer than pixels, and no pass per segment.
    flat = ids.ravel()
    starts = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1]
    order = np.argsort(known)
    runs = flat[starts]
    position = np.searchsorted(known, runs, sorter=order).clip(max=len(known) - 1)
    match = order[position]
    unknown = runs[known[match] != runs]
    if len(unknown):
        raise DataError(f"{source}: holds segment ids that the annotation lacks: {np.unique(unknown)[:10].tolist()}")
    missing = np.setdiff1d(known[:-1], runs)
    if len(missing):
        raise DataError(f"{source}: segment ids of the annotation have no pixel in it: {missing[:10].tolist()}")

    lengths = np.diff(np.r_[starts, flat.size])
    index = np.repeat(numbers[match], lengths).reshape(ids.shape)
    return SegmentTargets(index, np.array([segment["category_id"] for segment in kept], dtype=np.int64))


def semantic_targets(
    labels: np.ndarray, source: str, *, ignore_label: int = 255, num_classes: int | None = None
) -> SegmentTargets:
    """Targets of a semantic label map: one mask per class present.

    Args:
        labels: (H, W) int classes, and `ignore_label`.
        source: file of the labels, for the message.
        num_classes: labels must be below this; None leaves them unchecked.

    Raises:
        DataError: a label is outside 0..num_classes-1 and not `ignore_label`.
    """
    ignored = labels == ignore_label
    index = np.where(ignored, -1, labels)
    limit = int(index.max(initial=-1)) + 1 if num_classes is None else num_classes
    wrong = ~ignored & ((labels < 0) | (labels >= limit))
    if wrong.any():
        raise DataError(
            f"{source}: labels {np.unique(labels[wrong])[:10].tolist()} are neither one of the {limit} classes "
            f"(0..{limit - 1}) nor the ignore label {ignore_label}"
        )
    return SegmentTargets(index, np.arange(limit, dtype=np.int64))


def instance_targets(annotations: Sequence[Mapping[str, Any]]) -> AnnotationTargets:
    """Targets of COCO annotations with contiguous `category_id`; crowd annotations are none."""
    kept = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    return AnnotationTargets(
        [annotation["segmentation"] for annotation in kept],
        np.array([annotation["category_id"] for annotation in kept], dtype=np.int64),
    )


def pack_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as bytes, which transforms resize fast and to the nearest pixel centre.

    Args:
        labels: (H, W) int within -1..256³-2.

    Returns:
        (H, W) uint8, or (H, W, 3) when a label exceeds 254; all bits set stand for -1, as in padding.
    """
    if labels.max(initial=-1) < 255:
        return labels.astype(np.uint8)
    return np.stack([labels & 255, (labels >> 8) & 255, (labels >> 16) & 255], axis=-1).astype(np.uint8)


def unpack_labels(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_labels`: (H, W) int16 or int32 labels, -1 where there is none."""
    if packed.ndim == 2:
        labels, none = packed.astype(np.int16), 255
    else:
        parts: list[np.ndarray] = [packed[..., channel].astype(np.int32) for channel in range(3)]
        labels, none = parts[0] | parts[1] << 8 | parts[2] << 16, _WIDE_NONE
    labels[labels == none] = -1
    return labels


def _transform_segmentation(segmentation: Any, transform: Transform, size: tuple[int, int]) -> np.ndarray:
    """(H, W) mask of one object."""
    if isinstance(segmentation, Mapping):
        return transform.apply_segmentation(mask_api.decode(segmentation)).astype(bool)
    move: Callable[[np.ndarray], np.ndarray] = transform.apply_coords
    polygons = [move(np.asarray(polygon, dtype=np.float64).reshape(-1, 2)).ravel() for polygon in segmentation]
    if not polygons:
        return np.zeros(size, dtype=bool)
    return mask_api.decode(mask_api.merge(mask_api.frPyObjects(polygons, *size))).astype(bool)
