"""Bipartite matching between predictions and target masks."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.ops.cpu import linear

from .build import MATCHER_REGISTRY
from .masks import PackedMasks
from .points import random_points, sample_shared_points, values_at_once

# P predictions (final and auxiliary), B batch, Q queries, C classes, T targets of an image, K points, M matched pairs
# of a prediction of an image, R queries of all predictions of an image

Prediction = Mapping[str, Any]
"""`pred_logits` (B, Q, C+1), `pred_masks` (B, Q, h, w), and what else a decoder gives; Q, h and w may differ."""

logger = logging.getLogger(__name__)

_PARALLEL_COSTS = 2**17
"""With fewer costs, threads take longer to start than to solve."""
_MOST_THREADS = 8
_VALUES_OF_POINT = 4
"""What is computed of each mask at each point."""
_FACTORS = 64
"""Numbers from 0.5 to 1 whose product is far from the smallest float."""


class Target(TypedDict):
    """What one image should be segmented into."""

    labels: Tensor
    """(T,), integers in [0, C)."""
    masks: Tensor | PackedMasks
    """T masks padded like the image, or what `PackedMasks.pack` takes: bool (T, H, W)."""


class Assignment(NamedTuple):
    """The matched pairs of one prediction of one image, on the CPU, where the criterion puts them together.

    A target may have any number of pairs, a query at most one.
    """

    queries: Tensor
    """int64 (M,)."""
    targets: Tensor
    """int64 (M,)."""


@MATCHER_REGISTRY.register()
class HungarianMatcher(nn.Module):
    """Assign each target the query that predicts it best, one to one, for all predictions and images at once.

    Args:
        cost_class: weight of the class cost.
        cost_mask: weight of the binary cross-entropy of masks.
        cost_dice: weight of the dice cost.
        num_points: points at which masks are compared, drawn once per image.
    """

    @configurable
    def __init__(
        self, *, cost_class: float = 1.0, cost_mask: float = 1.0, cost_dice: float = 1.0, num_points: int
    ) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("all matching costs have weight zero: set CLASS_WEIGHT, MASK_WEIGHT or DICE_WEIGHT")
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return {
            "cost_class": node.CLASS_WEIGHT,
            "cost_mask": node.MASK_WEIGHT,
            "cost_dice": node.DICE_WEIGHT,
            "num_points": node.TRAIN_NUM_POINTS,
        }

    @torch.no_grad()
    def forward(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> list[list[Assignment]]:
        """Match, in float32.

        Args:
            predictions: P.
            targets: B.

        Returns:
            The assignment of each image of each prediction, P times B: min(Q, T) pairs.
        """
        costs = [self.cost(predictions, b, target) for b, target in enumerate(targets)]
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu()  # the step's only wait for the device
        sizes = [p["pred_logits"].shape[1] for p in predictions]
        parts = on_host.split([cost.numel() for cost in costs])
        problems = [part.view(cost.shape).split(sizes) for part, cost in zip(parts, costs, strict=True)]
        return assign([[image[p] for image in problems] for p in range(len(predictions))])

    def cost(self, predictions: Sequence[Prediction], image: int, target: Target) -> Tensor:
        """Return the cost (R, T) of giving a target to a query, of all predictions of one image, float32."""
        device, labels = predictions[0]["pred_logits"].device, target["labels"]
        if len(labels) == 0:
            return torch.zeros(sum(p["pred_logits"].shape[1] for p in predictions), 0, device=device)
        with torch.autocast(device_type=device.type, enabled=False):
            points = random_points(self.num_points, device=device)
            wanted = PackedMasks.pack(target["masks"]).sample(points)
            mask_costs = [
                self._mask_cost(sample_shared_points(maps, points), wanted)
                for maps in _batches([p["pred_masks"][image] for p in predictions], self.num_points)
            ]
            class_logits = torch.cat([p["pred_logits"][image] for p in predictions])
            class_cost = -class_logits.float().softmax(dim=-1)[:, labels]
            return self.cost_class * class_cost + torch.cat(mask_costs)

    def _mask_cost(self, logits: Tensor, wanted: Tensor) -> Tensor:
        cross_entropy, dice = pairwise_costs(logits, wanted)
        return self.cost_mask * cross_entropy + self.cost_dice * dice


def _batches(mask_logits: Sequence[Tensor], num_points: int) -> Iterator[Tensor]:
    """Join the masks (Q, h, w) of predictions as far as sizes and memory allow: float32 (some Q, h, w)."""
    for (height, width), same_size in groupby(mask_logits, key=lambda masks: masks.shape[1:]):
        together = list(same_size)
        values = max(len(masks) for masks in together) * (height * width + _VALUES_OF_POINT * num_points)
        step = max(1, values_at_once(together[0].device) // max(1, values))
        for start in range(0, len(together), step):
            part = together[start : start + step]
            yield (torch.cat(part) if len(part) > 1 else part[0]).float()


def assign(costs: Sequence[Sequence[Tensor]]) -> list[list[Assignment]]:
    """Solve the assignment problems (Q, T) of each image of each prediction on the CPU, large ones in parallel."""
    problems = [_finite(cost.numpy()) for prediction in costs for cost in prediction]
    if sum(problem.size for problem in problems) > _PARALLEL_COSTS:
        # Threads that outlived this call would be missing in a process that is forked later.
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            solved = iter(list(pool.map(linear_sum_assignment, problems)))
    else:
        solved = map(linear_sum_assignment, problems)
    return [[Assignment(*map(torch.from_numpy, next(solved))) for _ in prediction] for prediction in costs]


def _finite(cost: np.ndarray) -> np.ndarray:
    if np.isfinite(cost).all():
        return cost
    # A diverged model still gets an assignment, so that its loss, not the matcher, tells what happened.
    logger.warning("matching costs are not finite: the model has diverged or overflowed")
    return np.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)


def pairwise_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean binary cross-entropy (Eq. 7's L_ce) and the dice loss, smoothed by one, of every pair of masks.

    Args:
        logits: (Q, K).
        targets: (T, K) in [0, 1].

    Returns:
        Twice (Q, T).
    """
    probabilities = logits.sigmoid()
    overlap = linear(probabilities, targets)
    sizes = probabilities.sum(dim=1, keepdim=True) + targets.sum(dim=1)
    # BCE(x, t) = softplus(x) - x t, so one product serves both classes.
    cross_entropy = (_sum_of_softplus(logits, probabilities) - linear(logits, targets)) / logits.shape[1]
    return cross_entropy, 1 - (2 * overlap + 1) / (sizes + 1)


def _sum_of_softplus(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the sum (Q, 1) of softplus of (Q, K), whose sigmoid is given.

    softplus(x) = max(x, 0) - log sigmoid(|x|), and a product of many of these sigmoids needs one logarithm: half of
    the time of `F.softplus`.
    """
    surest = (probabilities - 0.5).abs_().add_(0.5)
    if padding := -surest.shape[1] % _FACTORS:
        surest = F.pad(surest, (0, padding), value=1.0)
    logarithms = surest.unflatten(1, (-1, _FACTORS)).prod(dim=2).log_()
    return logits.clamp(min=0).sum(dim=1, keepdim=True) - logarithms.sum(dim=1, keepdim=True)
