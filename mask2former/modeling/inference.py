"""From predictions to semantic, instance and panoptic segmentation of one image (Sec. 3.1).

`semantic_inference`, `panoptic_inference` and `instance_inference` do one task on mask logits that have the size of
the output. They are made of the tasks below, which see some rows of the output after the other, take what they need
from them, and forget them: `run_tasks` makes several outputs from mask logits at their own resolution, resizes only the
masks of queries that can matter, and these once for all.

Legend: Q queries, C classes, H and W height and width of the output, R some rows of it, K some queries, N instances.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from mask2former.d2.structures import Boxes, Instances
from mask2former.ops.cpu import empty

from .mask_rows import OutputMasks, Size
from .masks import PackedMasks, boxes_around, pack_planes
from .run_lengths import RunLengthMasks, RunLengths


class Segment(TypedDict):
    """One segment of a panoptic segmentation."""

    id: int
    isthing: bool
    category_id: int
    """Contiguous, in [0, C)."""
    score: float
    """Class probability of the segment's query; the best one's where several make one stuff segment."""


class Task(Protocol):
    """An output that is made from some rows of masks after the other."""

    queries: Tensor
    """Int64 (K,), rising: those whose masks it needs."""
    num_maps: int
    """How many maps (R, W) it makes beside the masks."""

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor) -> None:
        """Take mask logits and probabilities (K, R, W); they are not to be written to."""

    def result(self) -> Any:
        """The output, when it has had all rows."""


@torch.no_grad()
def run_tasks(tasks: Sequence[Task], masks: OutputMasks, *, max_bytes: int | None = None) -> list[Any]:
    """The results of tasks that are given the masks that they need, so many rows at a time that these take `max_bytes`.

    By default these are as many as suit the device. The results depend on it by rounding alone.
    """
    needed = torch.cat([task.queries for task in tasks]).unique()
    masks = masks.select(needed)
    places = [torch.searchsorted(needed, task.queries) for task in tasks]
    for rows in masks.bands(max_bytes, num_maps=max(task.num_maps for task in tasks)) if len(needed) else ():
        logits = masks.rows(rows)
        probabilities = logits.sigmoid()
        for task, place in zip(tasks, places, strict=True):
            if len(place) == len(needed):
                task.add(rows, logits, probabilities)
            elif len(place):
                task.add(rows, logits[place], probabilities[place])
        del logits, probabilities  # before the next rows, or the results, take memory
    return [task.result() for task in tasks]


@torch.no_grad()
def run_before_resizing(task: SemanticTask, masks: OutputMasks, *, max_bytes: int | None = None) -> Tensor:
    """Like `run_tasks`, but scores are made at the size of the padded image and then resized to that of the output."""
    for rows in masks.bands(max_bytes, num_maps=4 * task.num_classes):
        task.add_scores(rows, masks.rows(rows, before_output=lambda logits: task.scores(logits.sigmoid())))
    return task.result()


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Marginalise over queries: sum of class times mask probability.

    Args:
        class_logits: (Q, C+1).
        mask_logits: (Q, H, W).

    Returns:
        (C, H, W), at least 0; "no object" is left out.
    """
    masks = OutputMasks(mask_logits)
    return run_tasks([SemanticTask(class_logits, masks.size)], masks)[0]


class SemanticTask:
    """See `semantic_inference`."""

    def __init__(self, class_logits: Tensor, size: Size, *, labels_only: bool = False) -> None:
        """
        Args:
            class_logits: (Q, C+1).
            size: H and W.
            labels_only: the result is int16 (H, W), the class of the highest score, the first of equal ones.
        """
        self.queries = torch.arange(len(class_logits), device=class_logits.device)
        self._classes = class_logits.softmax(dim=-1)[:, :-1].T.contiguous()
        self._labels_only = labels_only
        self.num_classes = len(self._classes)
        self.num_maps = 2 * self.num_classes if labels_only else 0
        shape, dtype = (size, torch.int16) if labels_only else ((self.num_classes, *size), class_logits.dtype)
        self._result = empty(shape, dtype, class_logits.device)

    def scores(self, probabilities: Tensor, out: Tensor | None = None) -> Tensor:
        """Scores (C, R, W), into `out` (C, R * W) if given, from mask probabilities (Q, R, W)."""
        if out is None:  # autocast leaves products alone that are told where to go
            out = probabilities.new_empty(self.num_classes, probabilities[0].numel())
        return torch.mm(self._classes, probabilities.flatten(1), out=out).unflatten(1, probabilities.shape[1:])

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor) -> None:
        if self._labels_only:
            self.add_scores(rows, self.scores(probabilities))
        else:
            width = probabilities.shape[2]
            self.scores(probabilities, out=self._result.flatten(1)[:, rows.start * width : rows.stop * width])

    def add_scores(self, rows: slice, scores: Tensor) -> None:
        """Take scores (C, R, W) that were made before."""
        self._result[..., rows, :] = scores.max(dim=0).indices if self._labels_only else scores

    def result(self) -> Tensor:
        """Scores (C, H, W) or labels (H, W)."""
        return self._result


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[Segment]]:
    """Give each pixel to the query with the highest class times mask probability (MaskFormer, Sec. 3.4).

    Args:
        class_logits: (Q, C+1).
        mask_logits: (Q, H, W).
        thing_ids: the contiguous classes that are countable; stuff of one class becomes one segment.
        object_mask_threshold: queries need a higher class probability to take part.
        overlap_threshold: a segment is dropped if it wins less than this share of its own mask's area.

    Returns:
        int32 (H, W) of segment ids, 0 where there is none, and the segments, ids counting from 1.
    """
    masks = OutputMasks(mask_logits)
    task = PanopticTask(
        class_logits,
        masks.size,
        thing_ids=thing_ids,
        object_mask_threshold=object_mask_threshold,
        overlap_threshold=overlap_threshold,
    )
    return run_tasks([task], masks)[0]


class PanopticTask:
    """See `panoptic_inference`. Of the K queries that take part, a pixel keeps its owner and whether it is inside."""

    num_maps = 0

    def __init__(
        self,
        class_logits: Tensor,
        size: Size,
        *,
        thing_ids: Collection[int],
        object_mask_threshold: float,
        overlap_threshold: float,
    ) -> None:
        num_classes = class_logits.shape[1] - 1
        scores, labels = class_logits.softmax(dim=-1).max(dim=-1)
        self.queries = ((labels != num_classes) & (scores > object_mask_threshold)).nonzero().squeeze(1)
        self._scores, self._labels = scores[self.queries], labels[self.queries]
        self._thing_ids = thing_ids
        self._overlap_threshold = overlap_threshold
        self._owners = torch.zeros(size, dtype=torch.int32, device=class_logits.device)  # twice the owner, plus inside
        self._own_areas = torch.zeros_like(self.queries)

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor) -> None:
        owner = (self._scores[:, None, None] * probabilities).max(dim=0, keepdim=True).indices
        inside = probabilities.gather(0, owner) >= 0.5
        self._owners[rows] = owner.mul_(2).add_(inside)[0]
        self._own_areas += (probabilities >= 0.5).sum(dim=(1, 2))

    def result(self) -> tuple[Tensor, list[Segment]]:
        """Ids (H, W) and segments."""
        if not len(self.queries):
            return self._owners, []
        areas = self._owners.flatten().bincount(minlength=2 * len(self.queries))
        outside, inside = areas.view(-1, 2).unbind(dim=1)
        table = torch.stack([self._labels, self._own_areas, outside + inside, inside]).tolist()
        segments: list[Segment] = []
        stuff_segments: dict[int, Segment] = {}
        id_of_owner = torch.zeros(len(areas), dtype=torch.int32)
        for query, (label, own, won, final, score) in enumerate(zip(*table, self._scores.tolist(), strict=True)):
            if final == 0 or won / own < self._overlap_threshold:
                continue
            segment = stuff_segments.get(label)
            if segment is None:
                segment = Segment(
                    id=len(segments) + 1, isthing=label in self._thing_ids, category_id=label, score=score
                )
                segments.append(segment)
                if not segment["isthing"]:
                    stuff_segments[label] = segment
            segment["score"] = max(segment["score"], score)
            id_of_owner[2 * query + 1] = segment["id"]
        ids = id_of_owner.to(self._owners.device).index_select(0, self._owners.flatten())
        return ids.view_as(self._owners), segments


def instance_inference(
    class_logits: Tensor, mask_logits: Tensor, *, topk: int, thing_ids: Collection[int] | None = None
) -> Instances:
    """Take the best pairs of query and class as instances.

    Args:
        class_logits: (Q, C+1).
        mask_logits: (Q, H, W).
        topk: number of pairs with the highest class probability that are kept, at most.
        thing_ids: if given, pairs of other classes are left out (after counting them among the best).

    Returns:
        Instances of image size (H, W), by falling score: `pred_masks` bool (N, H, W), `pred_boxes` around the
        masks, `scores` (N,), class probability times mean mask probability inside the mask, `pred_classes` (N,).
    """
    masks = OutputMasks(mask_logits)
    task = InstanceTask(class_logits, masks.size, topk=topk, thing_ids=thing_ids)
    return run_tasks([task], masks)[0]


class InstanceTask:
    """See `instance_inference`. Each of the K queries is done once, though it may be in pairs with several classes."""

    num_maps = 0

    def __init__(
        self,
        class_logits: Tensor,
        size: Size,
        *,
        topk: int,
        thing_ids: Collection[int] | None = None,
        packed: bool = False,
        run_lengths: bool = False,
    ) -> None:
        """`packed`: `pred_masks` of the result are `PackedMasks`; `run_lengths`: they are `RunLengthMasks`."""
        device, num_classes = class_logits.device, class_logits.shape[1] - 1
        probabilities = class_logits.softmax(dim=-1)[:, :-1].flatten()
        scores, pairs = probabilities.topk(min(topk, len(probabilities)))
        labels = pairs % num_classes
        if thing_ids is not None:
            things = torch.isin(labels, torch.tensor(sorted(thing_ids), dtype=labels.dtype, device=device))
            scores, pairs, labels = scores[things], pairs[things], labels[things]
        self._scores, self._labels = scores, labels
        self.queries, self._query = (pairs // num_classes).unique(return_inverse=True)
        self._size, self._packed = size, packed
        count, (height, width) = len(self.queries), size
        self._runs = RunLengths(count, size) if run_lengths else None
        # Masks or, if packed, planes of eight.
        shape, dtype = ((-(-count // 8), *size), torch.uint8) if packed else ((count, *size), torch.bool)
        self._masks = empty((0,) if run_lengths else shape, dtype, device)
        self._areas = torch.zeros(count, height, dtype=torch.int64, device=device)
        self._sums = scores.new_zeros(count, height)
        self._columns = torch.zeros(count, width, dtype=torch.bool, device=device)

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor) -> None:
        if self._runs is not None:
            inside = logits > 0
            self._runs.add(inside)
        elif self._packed:
            inside = logits > 0
            self._masks[:, rows] = pack_planes(inside)
        else:
            inside = torch.gt(logits, 0, out=self._masks[:, rows])
        self._areas[:, rows] = inside.sum(dim=2)
        self._sums[:, rows] = (probabilities * inside).sum(dim=2)
        self._columns |= inside.any(dim=1)

    def result(self) -> Instances:
        """Instances by falling score."""
        mask_scores = self._sums.sum(dim=1) / (self._areas.sum(dim=1) + 1e-6)
        scores, order = (self._scores * mask_scores[self._query]).sort(descending=True, stable=True)
        query = self._query[order]
        masks: Tensor | PackedMasks | RunLengthMasks
        if self._runs is not None:
            masks = RunLengthMasks(self._runs.result(), self._size)[query]
        elif self._packed:
            masks = PackedMasks(self._masks, query)
        else:
            masks = empty((len(query), *self._size), torch.bool, query.device)
            torch.index_select(self._masks, 0, query, out=masks)
        return Instances(
            self._size,
            pred_masks=masks,
            pred_boxes=Boxes(boxes_around(self._columns, self._areas > 0)[query]),
            scores=scores,
            pred_classes=self._labels[order],
        )


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes (x0, y0, x1, y1) in pixels, far edges exclusive, of bool masks (N, H, W); zero if empty."""
    return boxes_around(masks.any(dim=1), masks.any(dim=2))
