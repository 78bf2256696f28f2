"""From predictions to semantic, instance and panoptic segmentation of one image: pure functions (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict

import torch
from torch import Tensor

from mask2former.d2.structures import Boxes, Instances

# Q queries, C classes, N instances


class Segment(TypedDict):
    """One segment of a panoptic segmentation."""

    id: int
    isthing: bool
    category_id: int
    """Contiguous, in [0, C)."""
    score: float
    """Class probability of the segment's query; the best one's where several make one stuff segment."""


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Marginalise over queries: sum of class times mask probability.

    Args:
        class_logits: (Q, C+1).
        mask_logits: (Q, H, W).

    Returns:
        (C, H, W), at least 0; "no object" is left out.
    """
    classes = class_logits.softmax(dim=-1)[:, :-1]
    return torch.einsum("qc,qhw->chw", classes, mask_logits.sigmoid())


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
    num_classes = class_logits.shape[1] - 1
    scores, labels = class_logits.softmax(dim=-1).max(dim=-1)
    keep = (labels != num_classes) & (scores > object_mask_threshold)
    scores, labels, masks = scores[keep], labels[keep], mask_logits[keep].sigmoid()
    num_kept = len(scores)
    if num_kept == 0:
        return torch.zeros(mask_logits.shape[1:], dtype=torch.int32, device=mask_logits.device), []
    owner = (scores[:, None, None] * masks).argmax(dim=0)
    solid = masks >= 0.5
    inside = solid.gather(0, owner.unsqueeze(0)).squeeze(0)
    own_areas = solid.sum(dim=(1, 2))
    won_areas = owner.flatten().bincount(minlength=num_kept)
    final_areas = owner[inside].bincount(minlength=num_kept)
    table = torch.stack([labels, own_areas, won_areas, final_areas]).tolist()

    segments: list[Segment] = []
    stuff_segments: dict[int, Segment] = {}
    id_of_query = torch.zeros(num_kept, dtype=torch.int32)
    for query, (label, own, won, final, score) in enumerate(zip(*table, scores.tolist(), strict=True)):
        if final == 0 or won / own < overlap_threshold:
            continue
        segment = stuff_segments.get(label)
        if segment is None:
            segment = Segment(id=len(segments) + 1, isthing=label in thing_ids, category_id=label, score=score)
            segments.append(segment)
            if not segment["isthing"]:
                stuff_segments[label] = segment
        segment["score"] = max(segment["score"], score)
        id_of_query[query] = segment["id"]
    return id_of_query.to(owner.device)[owner] * inside, segments


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
    num_classes = class_logits.shape[1] - 1
    probabilities = class_logits.softmax(dim=-1)[:, :-1].flatten()
    scores, pairs = probabilities.topk(min(topk, len(probabilities)))
    labels = pairs % num_classes
    if thing_ids is not None:
        things = torch.isin(labels, torch.tensor(sorted(thing_ids), dtype=labels.dtype, device=labels.device))
        scores, pairs, labels = scores[things], pairs[things], labels[things]
    logits = mask_logits[pairs // num_classes]
    masks = logits > 0
    mask_scores = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (masks.sum(dim=(1, 2)) + 1e-6)
    scores, order = (scores * mask_scores).sort(descending=True, stable=True)
    masks = masks[order]
    return Instances(
        (int(masks.shape[1]), int(masks.shape[2])),
        pred_masks=masks,
        pred_boxes=Boxes(mask_boxes(masks)),
        scores=scores,
        pred_classes=labels[order],
    )


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes (x0, y0, x1, y1) in pixels, far edges exclusive, of bool masks (N, H, W); zero if empty."""
    edges = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        size = occupied.shape[1]
        first = occupied.byte().argmax(dim=1)
        last = size - occupied.flip(1).byte().argmax(dim=1)
        edges.append(torch.stack([first, last], dim=1) * occupied.any(dim=1, keepdim=True))
    (x0, x1), (y0, y1) = (edge.float().unbind(dim=1) for edge in edges)
    return torch.stack([x0, y0, x1, y1], dim=1)
