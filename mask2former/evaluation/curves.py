"""Precision and recall over scores, and the score at which they are best balanced, from what mask AP has matched.

At mask IoU 0.5 and for objects of all sizes. Legend: D detections of one class, C classes, R recall thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask2former.evaluation.average_precision import (
    HIT,
    IGNORED,
    IOU_THRESHOLDS,
    MatchedImage,
)

_AT = int(np.argmin(np.abs(IOU_THRESHOLDS - 0.5)))


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What a class gives when detections with at least the score `threshold` are kept; all in 0..1."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def outcomes_at_half(image: MatchedImage) -> np.ndarray:
    """Outcomes (D,) of the detections of an image at IoU 0.5, for objects of all sizes."""
    return image.outcomes[0, _AT]


def interpolated_precision(table: np.ndarray) -> np.ndarray:
    """Precision (C, R) at COCO's 101 recalls, from COCOeval's table (T, R, C) of objects of all sizes."""
    return table[_AT].T


def best_points(images: Sequence[MatchedImage], objects: np.ndarray) -> list[OperatingPoint | None]:
    """The point of highest F1 of each class (C); None for a class without objects, or of which none is found.

    Args:
        images: in any order.
        objects: counts (A, C) of `count_objects`.
    """
    classes = np.concatenate([image.classes for image in images]) if images else np.zeros(0, dtype=np.int64)
    scores = np.concatenate([image.scores for image in images]) if images else np.zeros(0)
    outcomes = np.concatenate([outcomes_at_half(image) for image in images]) if images else np.zeros(0)
    return [
        best_point(scores[classes == category], outcomes[classes == category], int(count))
        for category, count in enumerate(objects[0])
    ]


def best_point(scores: np.ndarray, outcomes: np.ndarray, num_objects: int) -> OperatingPoint | None:
    """The point of highest F1 of one class; of equal ones that with the highest threshold, None if F1 is 0 everywhere.

    Args:
        scores: (D,) in any order.
        outcomes: (D,) MISS, HIT or IGNORED; those ignored count nowhere.
        num_objects: objects to be found.
    """
    counted = outcomes != IGNORED
    scores, hit = scores[counted], outcomes[counted] == HIT
    if not hit.any() or num_objects <= 0:
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(hit[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # a threshold keeps all of equal scores
    precision, recall = hits[last] / (last + 1), hits[last] / num_objects
    best = int(np.argmax(hits[last] / (last + 1 + num_objects)))  # half of F1
    return OperatingPoint(
        threshold=float(scores[last[best]]), precision=float(precision[best]), recall=float(recall[best])
    )
