"""Bipartite matching between predictions and target masks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .layers import linear
from .masks import PackedMasks
from .points import sample_shared_points

# P predictions (final and auxiliary), B batch, Q queries, C classes, T targets of an image, K points,
# M matched pairs of an image

logger = logging.getLogger(__name__)

_CPU_VALUES, _GPU_VALUES = 2**20, 2**24
"""Predictions are compared together as long as they are read at so few values; on a CPU these then stay in cache."""
_PARALLEL_COSTS = 2**17
"""With fewer costs, threads take longer to start than to solve."""
_POOL = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="matcher")


class Target(TypedDict):
    """What one image should be segmented into."""

    labels: Tensor
    """int64 (T,), in [0, C)."""
    masks: Tensor | PackedMasks
    """T masks padded like the image; as a tensor (T, H, W), bool or {0, 1}."""


class Assignment(NamedTuple):
    """The matched pairs of one image, of each prediction in the order of its targets."""

    queries: Tensor
    """int64 (P, M)."""
    targets: Tensor
    """int64 (P, M); all of them unless there are more than queries."""


class HungarianMatcher(nn.Module):
    """Assign each target the query that predicts it best, one to one, for all predictions and images at once.

    Args:
        cost_class: weight of the class cost.
        cost_mask: weight of the binary cross-entropy of masks.
        cost_dice: weight of the dice cost.
        num_points: points at which masks are compared, drawn once per image.
    """

    def __init__(
        self, *, cost_class: float = 1.0, cost_mask: float = 1.0, cost_dice: float = 1.0, num_points: int
    ) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("all matching costs have weight zero: set CLASS_WEIGHT, MASK_WEIGHT or DICE_WEIGHT")
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self, class_logits: Tensor, mask_logits: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Assignment]:
        """Match.

        Args:
            class_logits: (P, B, Q, C+1).
            mask_logits: P tensors (B, Q, h, w).
            targets: B targets.

        Returns:
            For each image the M = min(Q, T) matched pairs of each prediction.
        """
        costs = [
            self.cost(class_logits[:, b], [masks[b] for masks in mask_logits], target)
            for b, target in enumerate(targets)
        ]
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu()  # the step's only wait for the device
        parts = on_host.split([cost.numel() for cost in costs])
        pairs = assign([part.view(cost.shape) for part, cost in zip(parts, costs, strict=True)])
        counts = [image.shape[2] for image in pairs]
        on_device = torch.cat(pairs, dim=2).to(class_logits.device, non_blocking=True)
        return [Assignment(*image) for image in on_device.split(counts, dim=2)]

    def cost(self, class_logits: Tensor, mask_logits: Sequence[Tensor], target: Target) -> Tensor:
        """Return the cost (P, Q, T) of giving a target to a query, in one image, float32.

        Args:
            class_logits: (P, Q, C+1).
            mask_logits: P tensors (Q, h, w).
            target: T masks.
        """
        num_queries, labels = class_logits.shape[1], target["labels"]
        if len(labels) == 0:
            return class_logits.new_zeros(len(class_logits), num_queries, 0, dtype=torch.float32)
        with torch.autocast(device_type=class_logits.device.type, enabled=False):
            points = torch.rand(self.num_points, 2, device=class_logits.device)
            wanted = PackedMasks.pack(target["masks"]).sample(points)
            limit = _CPU_VALUES if class_logits.device.type == "cpu" else _GPU_VALUES
            chunk = max(1, limit // (num_queries * self.num_points))
            mask_costs = [
                self._mask_cost(mask_logits[p : p + chunk], points, wanted) for p in range(0, len(mask_logits), chunk)
            ]
            class_cost = -class_logits.float().softmax(dim=-1)[:, :, labels]
            return self.cost_class * class_cost + torch.cat(mask_costs)

    def _mask_cost(self, mask_logits: Sequence[Tensor], points: Tensor, wanted: Tensor) -> Tensor:
        """Return the cost (P, Q, T) of P tensors (Q, h, w) read at (K, 2), against targets read there, (T, K)."""
        predicted = sample_shared_points(torch.cat([logits.float() for logits in mask_logits]), points)
        mask_cost = pairwise_sigmoid_cross_entropy(predicted, wanted)
        cost = self.cost_mask * mask_cost + self.cost_dice * pairwise_dice(predicted, wanted)
        return cost.unflatten(0, (len(mask_logits), -1))


def assign(costs: Sequence[Tensor]) -> list[Tensor]:
    """Solve the assignment problems (P, Q, T) of each image on the CPU, large ones in parallel.

    Returns:
        For each image, int64 (2, P, M) with M = min(Q, T): queries, and their targets in ascending order.
    """
    problems = [problem for cost in costs for problem in _finite(cost).numpy()]
    many = sum(problem.size for problem in problems) > _PARALLEL_COSTS
    solved = iter((_POOL.map if many else map)(_solve, problems))
    return [torch.from_numpy(np.stack([next(solved) for _ in range(len(cost))], axis=1)) for cost in costs]


def _solve(cost: np.ndarray) -> np.ndarray:
    """Queries and targets (2, M) of the cheapest assignment of (Q, T), in the targets' order."""
    queries, targets = linear_sum_assignment(cost)
    order = targets.argsort()
    return np.stack([queries[order], targets[order]])


def _finite(cost: Tensor) -> Tensor:
    if cost.isfinite().all():
        return cost
    # A diverged model still gets an assignment, so that its loss, not the matcher, tells what happened.
    logger.warning("matching costs are not finite: the model has diverged or overflowed")
    return cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)


def pairwise_sigmoid_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of every pair of masks (Eq. 7's L_ce, as a matching cost).

    Args:
        logits: (..., Q, K).
        targets: (T, K) in [0, 1].

    Returns:
        (..., Q, T).
    """
    # BCE(x, t) = softplus(x) - x t, so one product serves both classes.
    product = linear(logits, targets)
    return (F.softplus(logits).sum(dim=-1, keepdim=True) - product) / logits.shape[-1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss, smoothed by one, of every pair of masks: (..., Q, K) and (T, K) to (..., Q, T)."""
    probabilities = logits.sigmoid()
    overlap = linear(probabilities, targets)
    sizes = probabilities.sum(dim=-1, keepdim=True) + targets.sum(dim=-1)
    return 1 - (2 * overlap + 1) / (sizes + 1)
