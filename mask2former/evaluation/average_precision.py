"""Average precision of detections, number for number that of pycocotools' COCOeval.

COCOeval matches all images at the end and in Python loops. Matching needs one image alone, so here it is a
pure function on one image, vectorised over thresholds and size ranges, and its small result is what is kept.

Legend: T IoU thresholds, R recall thresholds, A size ranges, D detections, G ground-truth objects, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.cocoeval import Params

from mask2former.data.rle import RLE
from mask2former.evaluation.boundary import rle_boundary
from mask2former.evaluation.ground_truth import GroundTruthInstance

_PARAMS = Params(iouType="segm")
IOU_THRESHOLDS = np.asarray(_PARAMS.iouThrs)
RECALL_THRESHOLDS = np.asarray(_PARAMS.recThrs)
AREA_RANGES = np.asarray(_PARAMS.areaRng, dtype=float)  # (A, 2): all, small, medium, large
MAX_DETECTIONS = int(_PARAMS.maxDets[-1])  # per image and class

MISS, HIT, IGNORED = range(3)  # outcomes of a detection


@dataclass(frozen=True, kw_only=True)
class MatchedImage:
    """Detections of one image, best first within a class: classes (D,), scores (D,), outcomes (A, T, D)."""

    classes: np.ndarray
    scores: np.ndarray
    outcomes: np.ndarray


_NOTHING = MatchedImage(
    classes=np.zeros(0, dtype=np.int64),
    scores=np.zeros(0),
    outcomes=np.zeros((len(AREA_RANGES), len(IOU_THRESHOLDS), 0), dtype=np.uint8),
)


def match_image(
    *,
    classes: np.ndarray,
    scores: np.ndarray,
    rles: Sequence[RLE],
    truth: Sequence[GroundTruthInstance],
    boundary: bool = False,
) -> MatchedImage:
    """Match the detections of one image to the objects of their class.

    `classes` int (D,), `scores` float (D,) and `rles` may come in any order; beyond the best 100 of a class
    they are dropped, as in COCOeval. With `boundary` the lower of mask and boundary IoU counts (boundary AP).
    """
    kept, outcomes = [], []
    for category in np.unique(classes):
        of_class = np.flatnonzero(classes == category)
        order = of_class[np.argsort(-scores[of_class], kind="mergesort")][:MAX_DETECTIONS]
        objects = [obj for obj in truth if obj.category_id == category]
        kept.append(order)
        outcomes.append(_match_class([rles[i] for i in order], objects, boundary=boundary))
    if not kept:
        return _NOTHING
    index = np.concatenate(kept)
    return MatchedImage(classes=classes[index], scores=scores[index], outcomes=np.concatenate(outcomes, axis=2))


def count_objects(truth: Sequence[GroundTruthInstance], num_classes: int) -> np.ndarray:
    """Objects that can be found, int64 (A, C): no crowd, and of a size inside the range."""
    counts = np.zeros((len(AREA_RANGES), num_classes), dtype=np.int64)
    for obj in truth:
        if not obj.iscrowd:
            counts[:, obj.category_id] += _inside(np.array([obj.area]))[:, 0]
    return counts


def precision_table(images: Sequence[MatchedImage], objects: np.ndarray) -> np.ndarray:
    """Interpolated precision float64 (T, R, C, A) from images in order of their ids and object counts (A, C).

    -1 where a class has no object.
    """
    num_ranges, num_classes = objects.shape
    table = -np.ones((len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), num_classes, num_ranges))
    images = [_NOTHING, *images]
    classes = np.concatenate([image.classes for image in images])
    scores = np.concatenate([image.scores for image in images])
    outcomes = np.concatenate([image.outcomes for image in images], axis=2)
    for category in np.flatnonzero(objects[0] > 0):
        of_class = np.flatnonzero(classes == category)
        order = of_class[np.argsort(-scores[of_class], kind="mergesort")]
        ordered = outcomes[:, :, order]
        for a in np.flatnonzero(objects[:, category] > 0):
            for t in range(len(IOU_THRESHOLDS)):
                table[t, :, category, a] = _interpolate(ordered[a, t], int(objects[a, category]))
    return table


def mean_precision(precision: np.ndarray) -> float:
    """Mean in percent of the entries of a part of the table that exist; nan when none does."""
    existing = precision[precision > -1]
    return 100 * float(np.mean(existing)) if existing.size else float("nan")


def _match_class(rles: list[RLE], truth: list[GroundTruthInstance], *, boundary: bool) -> np.ndarray:
    """Outcomes uint8 (A, T, D) of one class; `rles` best first. Greedy, as COCOeval.evaluateImg."""
    outside = ~_inside(mask_util.area(rles).astype(float))[:, None, :]
    unmatched = np.where(outside, IGNORED, MISS).astype(np.uint8)
    outcomes = np.repeat(unmatched, len(IOU_THRESHOLDS), axis=1)
    if not truth:
        return outcomes
    crowd = np.array([obj.iscrowd for obj in truth])
    objects = [obj.rle for obj in truth]
    ious = mask_util.iou(rles, objects, crowd.astype(np.uint8))
    if boundary:
        edges = [rle_boundary(rle) for rle in rles], [rle_boundary(rle) for rle in objects]
        ious = np.minimum(ious, mask_util.iou(*edges, crowd.astype(np.uint8)))
    ignored = (crowd | ~_inside(np.array([obj.area for obj in truth])))[:, None, :]  # (A, 1, G)
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((len(AREA_RANGES), len(IOU_THRESHOLDS), len(truth)), dtype=bool)
    last = len(truth) - 1
    for d, iou in enumerate(ious):
        if not (iou >= thresholds[0]).any():
            continue
        candidates = (free | crowd) & (iou >= thresholds)
        # A proper object goes before an ignored one, then the higher IoU wins, then the later object.
        proper = candidates & ~ignored
        eligible = np.where(proper.any(axis=-1, keepdims=True), proper, candidates)
        best = last - np.where(eligible, iou, -1.0)[..., ::-1].argmax(axis=-1)
        a, t = np.nonzero(candidates.any(axis=-1))
        g = best[a, t]
        outcomes[a, t, d] = np.where(ignored[a, 0, g], IGNORED, HIT)
        free[a, t, g] = False
    return outcomes


def _inside(areas: np.ndarray) -> np.ndarray:
    """Which areas (N,) lie in which size range: bool (A, N)."""
    return (areas >= AREA_RANGES[:, :1]) & (areas <= AREA_RANGES[:, 1:])


def _interpolate(outcomes: np.ndarray, num_objects: int) -> np.ndarray:
    """Precision (R,) at the recall thresholds from outcomes (D,) of detections, best first."""
    hits = np.cumsum(outcomes == HIT, dtype=float)
    misses = np.cumsum(outcomes == MISS, dtype=float)
    precision = hits / (misses + hits + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(hits / num_objects, RECALL_THRESHOLDS, side="left")
    return np.append(envelope, 0.0)[first]
