"""From annotations to the classes and masks that a model is trained on.

Targets are built on the unaugmented image, where every contradiction in the data is an error. A `Targets`
object then follows the image through its transforms, and gives one class and one mask per object. Masks are kept as
bits, eight to a byte, and never one by one.

Shapes: H height, W width, n objects, g planes of eight masks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_api
from torch import Tensor

from mask2former.d2.transforms import ResizeTransform, Transform, TransformList
from mask2former.data.images import DataError
from mask2former.data.segmentation import check_segmentation, find_wrong_code
from mask2former.modeling.masks import PackedMasks

_WIDE_NONE = 256**3 - 1


class Targets(Protocol):
    """What a task trains on, before augmentation."""

    def category_map(self) -> np.ndarray:
        """(H, W) class of each pixel, -1 where there is none, packed by `pack_labels`."""
        ...

    def transformed(self, transform: Transform, size: tuple[int, int]) -> tuple[Tensor, PackedMasks]:
        """Classes (n,) int64 and n masks after `transform`, which gives (height, width) `size`."""
        ...


@dataclass(frozen=True)
class SegmentTargets:
    """Segments that do not overlap.

    Attributes:
        index: (H, W) number of the segment at each pixel, -1 where there is none.
        classes: (n,) int64, class of each segment.
        keep_empty: keep segments of which no pixel is left, as classes with an empty mask.
        rounds_down: where labels are resized, take pixel floor(i * scale) and not the one nearest in space.
    """

    index: np.ndarray
    classes: np.ndarray
    keep_empty: bool = False
    rounds_down: bool = False

    def category_map(self) -> np.ndarray:
        return pack_labels(np.append(self.classes, -1)[self.index])

    def transformed(self, transform: Transform, size: tuple[int, int]) -> tuple[Tensor, PackedMasks]:
        labels = pack_labels(self.index)
        for part in transform.transforms if isinstance(transform, TransformList) else [transform]:
            if self.rounds_down and isinstance(part, ResizeTransform):
                labels = _resize_down(labels, part.new_h, part.new_w)
            else:
                labels = part.apply_segmentation(labels)
        labels = np.ascontiguousarray(labels)
        if labels.ndim == 2:
            areas = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
        else:
            labels = unpack_labels(labels)
            areas = np.roll(np.bincount(labels.ravel() + 1, minlength=len(self.classes) + 1), -1)
        # The last area counts pixels that are of none.
        visible = np.arange(len(self.classes)) if self.keep_empty else np.flatnonzero(areas[:-1])
        planes = np.zeros(((len(visible) + 7) // 8, *labels.shape), dtype=np.uint8)
        for plane, segments in zip(planes, _in_eights(visible), strict=True):
            bits = np.zeros(len(areas), dtype=np.uint8)
            bits[segments] = 1 << np.arange(len(segments))
            plane[:] = cv2.LUT(labels, bits) if labels.dtype == np.uint8 else bits[labels]
        return torch.from_numpy(self.classes[visible]), _pack(planes, np.arange(len(visible)))


@dataclass(frozen=True)
class AnnotationTargets:
    """Objects that may overlap, as COCO's polygons (in pixels) or run-length codes.

    Polygons are drawn after the transform, at full precision.
    """

    segmentations: Sequence[Any]
    classes: np.ndarray

    def category_map(self) -> np.ndarray:
        raise DataError("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA needs one category per pixel; instances may overlap")

    def transformed(self, transform: Transform, size: tuple[int, int]) -> tuple[Tensor, PackedMasks]:
        planes = np.zeros(((len(self.segmentations) + 7) // 8, *size), dtype=np.uint8)
        padding: np.ndarray | None = None
        for plane, segmentations in zip(planes, _in_eights(self.segmentations), strict=True):
            codes = {bit: code for bit, code in enumerate(segmentations) if isinstance(code, Mapping)}
            if codes:
                together = _decode(codes)
                if padding is None:  # labels are padded with what is no bit of ours
                    padding = transform.apply_segmentation(np.zeros_like(together))
                plane[:] = transform.apply_segmentation(together) & ~padding
            for bit, polygons in enumerate(segmentations):
                if bit not in codes and len(polygons):
                    plane |= _draw(polygons, transform, size) << bit
        seen = np.bitwise_or.reduce(planes, axis=(1, 2))
        visible = np.flatnonzero(np.unpackbits(seen, bitorder="little"))
        return torch.from_numpy(self.classes[visible]), _pack(planes, visible)


def panoptic_targets(ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], source: str) -> SegmentTargets:
    """Targets of a panoptic map; crowd segments and void are none.

    As in the published mappers, a segment without a pixel, in the map or after a crop, stays: a class with an empty
    mask. ADE20K's annotations hold such, of stuff that things cover.

    Args:
        ids: (H, W) int segment ids, 0 where void.
        segments_info: the segments, with contiguous `category_id`.
        source: file of the ids, for the message.

    Raises:
        DataError: the map has an id that no segment describes.
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

    lengths = np.diff(np.r_[starts, flat.size])
    index = np.repeat(numbers[match], lengths).reshape(ids.shape)
    classes = np.array([segment["category_id"] for segment in kept], dtype=np.int64)
    return SegmentTargets(index, classes, keep_empty=True)


def semantic_targets(
    labels: np.ndarray, source: str, *, ignore_label: int = 255, num_classes: int | None = None
) -> SegmentTargets:
    """Targets of a semantic label map: one mask per class present.

    They are resized as the published mapper resizes them, which gives PyTorch labels of float64.

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
    return SegmentTargets(index, np.arange(limit, dtype=np.int64), rounds_down=True)


def instance_targets(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> AnnotationTargets:
    """Targets of COCO annotations with contiguous `category_id`; crowd annotations are none.

    Args:
        annotations: of one image.
        size: its height and width.

    Raises:
        DataError: a mask that is none of this image; pycocotools would crash.
    """
    kept = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    segmentations = []
    for place, annotation in enumerate(kept, 1):
        try:
            segmentation = annotation["segmentation"]  # no polygons: an object of no pixel
            segmentations.append(check_segmentation(segmentation, *size) if len(segmentation) else [])
        except (ValueError, TypeError) as error:
            raise DataError(f"object {place} of {len(kept)}: {error}") from error
    if find_wrong_code([code for code in segmentations if isinstance(code, Mapping)]) is not None:
        raise DataError("run lengths that do not add up to the image's pixels")
    return AnnotationTargets(
        segmentations, np.array([annotation["category_id"] for annotation in kept], dtype=np.int64)
    )


def pack_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as bytes, which transforms resize fast, and of a pixel to be made take the one nearest in space.

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


def _resize_down(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) to the pixels that PyTorch's "nearest" takes of float64 labels."""
    for axis, length in enumerate((height, width)):
        numbers = torch.arange(labels.shape[axis], dtype=torch.float64).reshape(1, 1, -1, 1)
        taken = F.interpolate(numbers, (length, 1), mode="nearest")
        labels = labels.take(taken.flatten().long().numpy(), axis=axis)
    return labels


def _in_eights(items: Any) -> list[Any]:
    return [items[start : start + 8] for start in range(0, len(items), 8)]


def _pack(planes: np.ndarray, ids: np.ndarray) -> PackedMasks:
    return PackedMasks(torch.from_numpy(planes), torch.from_numpy(ids.astype(np.int64)))


def _decode(codes: Mapping[int, Any]) -> np.ndarray:
    """(H, W) uint8 plane of the run-length codes of some bits."""
    boxes = mask_api.toBbox(list(codes.values())).astype(int).tolist()
    plane = np.zeros(next(iter(codes.values()))["size"], dtype=np.uint8)
    for (bit, code), (x, y, width, height) in zip(codes.items(), boxes, strict=True):
        box = np.s_[y : y + height, x : x + width]
        plane[box] |= mask_api.decode(code)[box] << np.uint8(bit)
    return plane


def _draw(polygons: Sequence[Any], transform: Transform, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 mask of one object's polygons."""
    move: Callable[[np.ndarray], np.ndarray] = transform.apply_coords
    moved = [move(np.asarray(polygon, dtype=np.float64).reshape(-1, 2)).ravel() for polygon in polygons]
    return mask_api.decode(mask_api.merge(mask_api.frPyObjects(moved, *size)))
