"""Instance and panoptic segmentation of large images: objects that several tiles saw become one.

Legend: A and B objects of two tiles that overlap, H and W height and width of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from mask2former.d2.structures import Instances
from mask2former.modeling.inference import Segment
from mask2former.modeling.mask_rows import Size
from mask2former.modeling.run_lengths import RLE, RunLengthMasks
from mask2former.tiling.tiles import Box, Tile

SAME_OBJECT = 0.5
"""Of two masks, seen where tiles overlap, the larger covers so much of the smaller if they are of one object."""


class Groups:
    """Numbers of which some belong together."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def __len__(self) -> int:
        return len(self._parents)

    def grow(self, count: int) -> int:
        """Take up `count` further numbers; returns the first of them."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return first

    def first(self, number: int) -> int:
        """The least number that belongs to the same group."""
        while self._parents[number] != number:
            number = self._parents[number]
        return number

    def join(self, a: int, b: int) -> None:
        """Make one group of two."""
        low, high = sorted((self.first(a), self.first(b)))
        self._parents[high] = low


def match(inside: np.ndarray, areas_a: np.ndarray, areas_b: np.ndarray, comparable: np.ndarray) -> list[Sequence[int]]:
    """Pairs (a, b) of objects that are one, each in one pair at most; those of the highest IoU come first.

    Args:
        inside: (A, B), the pixels that two masks share, where tiles overlap.
        areas_a, areas_b: (A,) and (B,), those of each mask there.
        comparable: bool (A, B), whether two are of one class.
    """
    smaller = np.minimum(areas_a[:, None], areas_b).clip(min=1)
    union = (areas_a[:, None] + areas_b - inside).clip(min=1)
    candidates = np.argwhere(comparable & (inside >= SAME_OBJECT * smaller) & (inside > 0))
    overlap = (inside / union)[candidates[:, 0], candidates[:, 1]]
    pairs: list[Sequence[int]] = []
    taken_a: set[int] = set()
    taken_b: set[int] = set()
    for a, b in candidates[np.argsort(-overlap, kind="stable")].tolist():
        if a not in taken_a and b not in taken_b:
            pairs.append((a, b))
            taken_a.add(a)
            taken_b.add(b)
    return pairs


def is_remnant(tile: Tile, size: Size, box: Sequence[float], in_core: float, area: float) -> bool:
    """Tell whether an object is a part that a tile cuts off one which its neighbour sees better.

    Args:
        size: H and W.
        box: x0, y0, x1, y1 in the image.
        in_core: its pixels in the core of its tile.
        area: its pixels.
    """
    x0, y0, x1, y1 = box
    cut = (
        (tile.left > 0 and x0 <= tile.left)
        or (tile.top > 0 and y0 <= tile.top)
        or (tile.right < size[1] and x1 >= tile.right)
        or (tile.bottom < size[0] and y1 >= tile.bottom)
    )
    return cut and 2 * in_core < area


class InstanceMerger:
    """Takes the instances of tiles; of one class and covering each other where tiles overlap, they become one.

    It has the union of their masks and the best of their scores. Instances that no neighbour knows stay, but for those
    that the edge of their tile cuts and that lie for the most part where a neighbour sees more around them.

    Args:
        size: H and W.
    """

    def __init__(self, size: Size) -> None:
        self._size = size
        self._tiles: list[tuple[Tile, int, RunLengthMasks]] = []
        self._groups = Groups()
        self._scores: list[Tensor] = []
        self._classes: list[Tensor] = []
        self._matched: set[int] = set()

    def add(self, tile: Tile, instances: Instances) -> None:
        """See `Merger`."""
        masks = RunLengthMasks.encode(instances.pred_masks, corner=(tile.top, tile.left), image=self._size)
        first = self._groups.grow(len(masks))
        classes = instances.pred_classes.cpu()
        for (other, other_first, other_masks), other_classes in zip(self._tiles, self._classes, strict=True):
            box = tile.overlap(other)
            if box is not None:
                comparable = (other_classes[:, None] == classes).numpy()
                for a, b in _matching_masks(other_masks, masks, _crop(box, self._size), comparable):
                    self._groups.join(other_first + a, first + b)
                    self._matched |= {other_first + a, first + b}
        self._tiles.append((tile, first, masks))
        self._scores.append(instances.scores.cpu())
        self._classes.append(classes)

    def result(self) -> Instances:
        """Instances by falling score, with `RunLengthMasks`, in main memory."""
        members: dict[int, list[RLE]] = {}
        scores, classes = torch.cat(self._scores), torch.cat(self._classes)
        best = scores.clone()
        for tile, first, masks in self._tiles:
            core = _crop(tile.core, self._size)
            boxes = masks.get_bounding_boxes().tensor.tolist()
            for number, rle, box in zip(range(first, first + len(masks)), masks.rles, boxes, strict=True):
                if number not in self._matched:
                    in_core = mask_util.area(mask_util.merge([rle, core], intersect=True))
                    if is_remnant(tile, self._size, box, in_core, mask_util.area(rle)):
                        continue
                group = self._groups.first(number)
                members.setdefault(group, []).append(rle)
                best[group] = max(best[group], scores[number])
        numbers = torch.tensor(list(members), dtype=torch.int64)
        order = best[numbers].sort(descending=True, stable=True).indices
        rles = [rles[0] if len(rles) == 1 else mask_util.merge(rles) for rles in members.values()]
        merged = RunLengthMasks(rles, self._size)[order]
        return Instances(
            self._size,
            pred_masks=merged,
            pred_boxes=merged.get_bounding_boxes(),
            scores=best[numbers][order],
            pred_classes=classes[numbers][order],
        )


def _crop(box: Box, size: Size) -> RLE:
    top, left, bottom, right = box
    mask = torch.ones((1, bottom - top, right - left), dtype=torch.bool)
    return RunLengthMasks.encode(mask, corner=(top, left), image=size).rles[0]


def _matching_masks(a: RunLengthMasks, b: RunLengthMasks, crop: RLE, comparable: np.ndarray) -> list[Sequence[int]]:
    parts = [[mask_util.merge([rle, crop], intersect=True) for rle in masks.rles] for masks in (a, b)]
    areas_a, areas_b = (np.array([mask_util.area(rle) for rle in rles], dtype=np.float64) for rles in parts)
    if not (len(a) and len(b)):
        return []
    iou = mask_util.iou(*parts, [0] * len(b))
    inside = iou * (areas_a[:, None] + areas_b) / (1 + iou)
    return match(inside, areas_a, areas_b, comparable)


class PanopticMerger:
    """Takes the segments of tiles: things become one as instances do, all stuff of a class is one segment.

    A pixel is of what the tile whose core it is in says, or else any other that knows something there.

    Args:
        size: H and W.
    """

    def __init__(self, size: Size) -> None:
        self._size = size
        self._ids = np.zeros(size, dtype=np.int32)
        self._groups = Groups()
        self._groups.grow(1)  # 0 is no segment
        self._segments: dict[int, Segment] = {}
        self._stuff: dict[int, int] = {}
        self._matched: set[int] = set()
        self._remnants: set[int] = set()
        self._tiles: list[tuple[Tile, np.ndarray]] = []

    def add(self, tile: Tile, output: tuple[Tensor, list[Segment]]) -> None:
        """See `Merger`."""
        ids = self._renumbered(*output)
        self._tiles = [(other, seen) for other, seen in self._tiles if other.bottom > tile.top]
        for other, seen in self._tiles:
            box = tile.overlap(other)
            if box is not None:
                self._join(_part(seen, other, box), _part(ids, tile, box))
        self._note_remnants(tile, ids)
        own = self._ids[tile.rows, tile.columns]
        write = ids != 0
        core = np.zeros(ids.shape, dtype=bool)
        _part(core, tile, tile.core)[:] = True
        write &= core | (own == 0)
        own[write] = ids[write]
        self._tiles.append((tile, ids))

    def _renumbered(self, ids: Tensor, segments: list[Segment]) -> np.ndarray:
        """Ids (h, w) that are new in the image, but for stuff of classes that are known."""
        table = np.zeros(1 + max((segment["id"] for segment in segments), default=0), dtype=np.int32)
        for segment in segments:
            number = self._groups.grow(1)
            if not segment["isthing"]:
                number = self._stuff.setdefault(segment["category_id"], number)
            table[segment["id"]] = number
            known = self._segments.setdefault(number, segment.copy())
            if "score" in segment:
                known["score"] = max(known["score"], segment["score"])
        return table[ids.cpu().numpy()]

    def _join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Join the things of two maps of one part of the image."""
        numbers_a, numbers_b = self._things(a), self._things(b)
        if not (len(numbers_a) and len(numbers_b)):
            return
        # Places among the things, where the last is for all else.
        places_a, places_b = (_places(ids, numbers) for ids, numbers in ((a, numbers_a), (b, numbers_b)))
        shape = (len(numbers_a) + 1, len(numbers_b) + 1)
        table = np.bincount((places_a * shape[1] + places_b).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
        classes_a, classes_b = (
            np.array([self._segments[number]["category_id"] for number in numbers])
            for numbers in (numbers_a.tolist(), numbers_b.tolist())
        )
        areas_a, areas_b = table.sum(axis=1)[:-1], table.sum(axis=0)[:-1]
        for i, j in match(table[:-1, :-1], areas_a, areas_b, classes_a[:, None] == classes_b):
            first, second = int(numbers_a[i]), int(numbers_b[j])
            self._groups.join(first, second)
            self._matched |= {first, second}

    def _things(self, ids: np.ndarray) -> np.ndarray:
        numbers = np.unique(ids)
        return numbers[[number != 0 and self._segments[number]["isthing"] for number in numbers.tolist()]]

    def _note_remnants(self, tile: Tile, ids: np.ndarray) -> None:
        core = np.bincount(_part(ids, tile, tile.core).ravel(), minlength=len(self._groups))
        areas = np.bincount(ids.ravel(), minlength=len(self._groups))
        for number in self._things(ids).tolist():
            y, x = (np.flatnonzero((ids == number).any(axis=axis)) for axis in (1, 0))
            box = (tile.left + x[0], tile.top + y[0], tile.left + x[-1] + 1, tile.top + y[-1] + 1)
            if is_remnant(tile, self._size, box, core[number], areas[number]):
                self._remnants.add(number)

    def result(self) -> tuple[Tensor, list[Segment]]:
        """Ids, int32 (H, W), and segments, which count from 1, in main memory."""
        left = self._remnants - self._matched
        table = np.array([0 if i in left else self._groups.first(i) for i in range(len(self._groups))], dtype=np.int32)
        best: dict[int, float] = {}
        for number, segment in self._segments.items():
            if "score" in segment:
                best[int(table[number])] = max(best.get(int(table[number]), 0.0), segment["score"])
        present = np.flatnonzero(np.bincount(table[self._ids].ravel(), minlength=len(table)))
        final = np.zeros(len(table), dtype=np.int32)
        segments: list[Segment] = []
        for group in present[present != 0].tolist():
            final[group] = len(segments) + 1
            segment = self._segments[group].copy()
            segment["id"] = len(segments) + 1
            if group in best:
                segment["score"] = best[group]
            segments.append(segment)
        return torch.from_numpy(final[table][self._ids]), segments


def _part(ids: np.ndarray, tile: Tile, box: Box) -> np.ndarray:
    top, left, bottom, right = box
    return ids[top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]


def _places(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Where each id is among sorted numbers; their count where it is not."""
    places = np.searchsorted(numbers, ids).clip(max=len(numbers) - 1)
    return np.where(numbers[places] == ids, places, len(numbers))
