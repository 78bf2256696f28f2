"""Which class is taken for which: objects found, missed, made up or named wrongly, image by image.

An event is a pair (row, column): the true class, or VOID or NOTHING, and the predicted class, or MISSED. Its count is
in objects, or in pixels for semantic segmentation. Legend: C classes, D detections, G ground-truth objects, P pairs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from mask2former.data.rle import RLE
from mask2former.evaluation.ground_truth import GroundTruthInstance

VOID, NOTHING = -2, -1
"""Rows after those of the classes: a prediction on ignored pixels or a crowd, and one where nothing is."""
MISSED = -1
"""The column after those of the classes: a true object without prediction."""
Events = Mapping[tuple[int, int], int]


def confusion_table(events: Iterable[Events], num_classes: int) -> np.ndarray:
    """Sum of events int64 (C + 2, C + 1): rows of the classes, VOID and NOTHING, columns of the classes and MISSED."""
    table = np.zeros((num_classes + 2, num_classes + 1), dtype=np.int64)
    for of_image in events:
        for (row, column), count in of_image.items():
            table[row, column] += count
    return table


def segment_events(
    joint: Mapping[tuple[int, int], int], gt_segments: Sequence[dict[str, Any]], pred_segments: Sequence[dict[str, Any]]
) -> Events:
    """Events of the segments of one image, matched across classes where their IoU, void left out, is above 0.5.

    A prediction without match counts as VOID where it lies for more than half on void pixels or crowds.

    Args:
        joint: areas of pairs (true id, predicted id), id 0 being void.
        gt_segments, pred_segments: `id` and contiguous `category_id`, of true ones also `iscrowd`.
    """
    true_areas: Counter[int] = Counter()
    areas: Counter[int] = Counter()
    for (true_id, pred_id), area in joint.items():
        true_areas[true_id] += area
        areas[pred_id] += area
    truths = {s["id"]: s["category_id"] for s in gt_segments if not s.get("iscrowd", 0)}
    crowds = {s["id"] for s in gt_segments if s.get("iscrowd", 0)}
    missed = {true_id: category for true_id, category in truths.items() if true_areas[true_id]}
    unmatched = {segment["id"]: segment["category_id"] for segment in pred_segments}
    events: Counter[tuple[int, int]] = Counter()
    ignored: Counter[int] = Counter()
    for (true_id, pred_id), area in joint.items():
        if true_id == 0 or true_id in crowds:
            ignored[pred_id] += area
        union = true_areas[true_id] + areas[pred_id] - area - joint.get((0, pred_id), 0)
        # above 0.5 no segment has two partners
        if true_id in missed and pred_id in unmatched and area > 0.5 * union:
            events[missed.pop(true_id), unmatched.pop(pred_id)] += 1
    for category in missed.values():
        events[category, MISSED] += 1
    for pred_id, category in unmatched.items():
        events[VOID if ignored[pred_id] > 0.5 * areas[pred_id] else NOTHING, category] += 1
    return events


@dataclass(frozen=True, kw_only=True)
class OverlappingInstances:
    """Detections and objects of one image, with the pairs whose IoU is at least 0.5, of whatever classes.

    `classes` (D,), `scores` (D,), `true_classes` (G,), `crowd` (G,), `pairs` int (P, 2) of detection and object with
    their `ious` (P,).
    """

    classes: np.ndarray
    scores: np.ndarray
    true_classes: np.ndarray
    crowd: np.ndarray
    pairs: np.ndarray
    ious: np.ndarray


def overlapping_instances(
    *, classes: np.ndarray, scores: np.ndarray, rles: Sequence[RLE], truth: Sequence[GroundTruthInstance]
) -> OverlappingInstances:
    """Compare all detections of an image with all its objects."""
    crowd = np.array([obj.iscrowd for obj in truth], dtype=bool)
    ious = np.zeros((len(rles), len(truth)))
    if len(rles) and truth:
        ious = mask_util.iou(list(rles), [obj.rle for obj in truth], crowd.astype(np.uint8))
    pairs = np.argwhere(ious >= 0.5)
    return OverlappingInstances(
        classes=classes,
        scores=scores,
        true_classes=np.array([obj.category_id for obj in truth], dtype=np.int64),
        crowd=crowd,
        pairs=pairs,
        ious=ious[pairs[:, 0], pairs[:, 1]],
    )


def instance_events(image: OverlappingInstances, thresholds: np.ndarray) -> Events:
    """Events of the detections whose score reaches the threshold of their class.

    First each takes the object of its class with the highest IoU that a better detection has left, as in mask AP; what
    is over on both sides is then matched across classes likewise.

    Args:
        thresholds: (C,).
    """
    kept = image.scores >= thresholds[image.classes]
    partners: dict[int, list[tuple[float, int]]] = {}
    for (d, g), iou in zip(image.pairs.tolist(), image.ious.tolist(), strict=True):
        if kept[d]:
            partners.setdefault(d, []).append((iou, g))
    order = [d for d in np.argsort(-image.scores, kind="stable").tolist() if kept[d]]
    free = set(np.flatnonzero(~image.crowd).tolist())
    matched: dict[int, int] = {}
    for same_class in (True, False):
        for d in order:
            options = [
                (iou, g)
                for iou, g in partners.get(d, ())
                if d not in matched and g in free and (image.true_classes[g] == image.classes[d] or not same_class)
            ]
            if options:
                matched[d] = max(options)[1]
                free.remove(matched[d])
    events: Counter[tuple[int, int]] = Counter()
    for d in order:
        if d in matched:
            row = int(image.true_classes[matched[d]])
        else:
            row = VOID if any(image.crowd[g] for _, g in partners.get(d, ())) else NOTHING
        events[row, int(image.classes[d])] += 1
    for g in free:
        events[int(image.true_classes[g]), MISSED] += 1
    return events


def renumbered(events: Events, place: Mapping[int, int]) -> Events:
    """Events with `place[class]` for classes."""
    place = {**place, VOID: VOID, NOTHING: NOTHING}  # MISSED is as NOTHING
    return {(place[row], place[column]): count for (row, column), count in events.items()}


def f1_score(events: Events) -> float:
    """F1 in 0..1 of the objects of an image, all classes together; predictions on void do not count. nan: nothing is
    there and nothing was found.
    """
    hits = sum(count for (row, column), count in events.items() if row == column)
    false = sum(count for (row, column), count in events.items() if column not in (row, MISSED) and row != VOID)
    missed = sum(count for (row, column), count in events.items() if row >= 0 and column != row)
    total = 2 * hits + false + missed
    return 2 * hits / total if total else float("nan")


def pixel_events(confusion: np.ndarray) -> Events:
    """Events of the pixels of one image from its confusion matrix (C, C)."""
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns].tolist()
    return dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), counts, strict=True))


def pixels_on_void(predicted: np.ndarray, truth: np.ndarray, *, num_classes: int, ignore_label: int) -> Events:
    """Events of the pixels of ignored truth, by the class that is predicted there."""
    counts = np.bincount(predicted[truth == ignore_label], minlength=num_classes)
    return {(VOID, column): count for column, count in enumerate(counts.tolist()) if count}
