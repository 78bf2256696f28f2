"""The matched pairs of a batch in one list, ordered such that each target's mask is unpacked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .masks import PackedMasks
from .matcher import Assignment, Prediction, Target

# P predictions, B batch, N pairs of the batch, R queries of all predictions of the batch, K points

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Pairs:
    """Pairs of all predictions, image after image; within one, those of the same target are neighbours.

    All are int64 (N,), on the CPU.
    """

    image: Ids
    prediction: Ids
    query: Ids
    target: Ids
    copies: Ids
    """How many pairs the target of the pair has; targets with as many are neighbours."""
    order: Ids
    """Where each pair stands in the list [image][prediction][pair]."""

    @staticmethod
    def of(assignments: Sequence[Sequence[Assignment]]) -> Pairs:
        """Put together the assignments of B images of P predictions."""
        cells = [
            (b, p, *pairs) for b, image in enumerate(zip(*assignments, strict=True)) for p, pairs in enumerate(image)
        ]
        counts = [len(queries) for _, _, queries, _ in cells]
        image, prediction = (np.repeat(np.array(ids), counts) for ids in list(zip(*cells, strict=True))[:2])
        query, target = (torch.cat(ids).cpu().numpy() for ids in list(zip(*cells, strict=True))[2:])
        key = image * (1 + target.max(initial=0)) + target
        _, found, times = np.unique(key, return_inverse=True, return_counts=True)
        copies = times[found]
        order = np.lexsort((target, copies, image))
        return Pairs(image[order], prediction[order], query[order], target[order], copies[order], order)

    def check(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> None:
        """Raise ValueError, naming one, if there are pairs of queries or targets that do not exist."""
        num_queries = np.array([p["pred_logits"].shape[1] for p in predictions])[self.prediction]
        num_targets = np.array([len(target["labels"]) for target in targets])[self.image]
        for name, ids, sizes in (("query", self.query, num_queries), ("target", self.target, num_targets)):
            wrong = (ids < 0) | (ids >= sizes)
            if wrong.any():
                n = int(wrong.argmax())
                raise ValueError(
                    f"the matcher gave {name} {ids[n]} of {sizes[n]}, in prediction {self.prediction[n]} of image "
                    f"{self.image[n]}"
                )

    def rows(self, predictions: Sequence[Prediction]) -> Ids:
        """Where the queries (N,) are among those of all predictions (B, Q, ...), flattened and joined (R, ...)."""
        num_images, sizes = len(predictions[0]["pred_logits"]), [p["pred_logits"].shape[1] for p in predictions]
        starts = num_images * np.cumsum([0, *sizes[:-1]])
        return starts[self.prediction] + self.image * np.array(sizes)[self.prediction] + self.query

    def per_image(self, num_images: int) -> list[int]:
        """How many pairs each image has."""
        return np.bincount(self.image, minlength=num_images).tolist()

    def sample(self, masks: Sequence[PackedMasks], points: Tensor) -> Tensor:
        """Read the target masks of the pairs at the pairs' points (N, K, 2), each unpacked once: (N, K)."""
        changes = np.flatnonzero(np.diff(self.image) | np.diff(self.copies)) + 1
        values = [points.new_empty(0, points.shape[1])]
        for start, stop in pairwise(dict.fromkeys([0, *changes.tolist(), len(self.image)])):
            copies = int(self.copies[start])
            chosen = masks[self.image[start]][torch.from_numpy(self.target[start:stop:copies])]
            at = points[start:stop].unflatten(0, (-1, copies)).flatten(1, 2)
            values.append(chosen.sample(at).view(stop - start, -1))
        return torch.cat(values)
