"""Random panoptic ground truth and predictions, in the forms that evaluators meet."""

from typing import Any

import numpy as np

# Dataset ids that differ from contiguous classes; things first, as in COCO.
CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 12, "name": "cow", "isthing": 1},
    {"id": 40, "name": "sky", "isthing": 0},
    {"id": 41, "name": "sea", "isthing": 0},
]
CLASS_OF = {category["id"]: index for index, category in enumerate(CATEGORIES)}

Sample = tuple[np.ndarray, list[dict[str, Any]]]


def random_panoptic(rng: np.random.Generator, *, size: tuple[int, int], segments: int, max_id: int) -> Sample:
    """A random blocky map with about a fifth of void; segments with a dataset category and some crowds."""
    ids = rng.choice(np.arange(1, max_id), size=segments, replace=False)
    blocks = rng.choice(np.append(ids, [0] * max(1, segments // 4)), size=(size[0] // 4 + 1, size[1] // 4 + 1))
    painted = np.kron(blocks, np.ones((4, 4), dtype=np.int64))[: size[0], : size[1]].astype(np.int32)
    infos = []
    for segment_id in np.unique(painted):
        if segment_id == 0:
            continue
        category = CATEGORIES[rng.integers(len(CATEGORIES) - 1)]  # the last class never occurs
        infos.append(
            {
                "id": int(segment_id),
                "category_id": category["id"],
                "iscrowd": int(category["isthing"] and rng.random() < 0.3),
                "area": int((painted == segment_id).sum()),
            }
        )
    return painted, infos


def disturb(rng: np.random.Generator, sample: Sample) -> Sample:
    """A prediction like a ground truth: noise, some classes wrong, some segments void; contiguous classes."""
    ids, infos = sample
    ids = np.where(rng.random(ids.shape) < 0.1, np.roll(ids, 3, axis=1), ids)
    ids = np.where(rng.random(ids.shape) < 0.05, 0, ids)
    renamed = np.zeros_like(ids)
    segments = []
    for new_id, info in enumerate(infos, start=1):
        mask = ids == info["id"]
        if rng.random() < 0.1 or not mask.any():
            continue
        renamed[mask] = new_id
        wrong = rng.random() < 0.15
        category = int(rng.integers(len(CATEGORIES))) if wrong else CLASS_OF[info["category_id"]]
        segments.append({"id": new_id, "category_id": category, "isthing": bool(CATEGORIES[category]["isthing"])})
    return renamed, segments
