"""Bipartite matching between predictions and target masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .points import sample_points

# P predictions (final and auxiliary), B batch, Q queries, C classes, T targets of an image, K points

logger = logging.getLogger(__name__)


class Target(TypedDict):
    """What one image should be segmented into."""

    labels: Tensor
    """int64 (T,), in [0, C)."""
    masks: Tensor
    """(T, H, W), bool or {0, 1}, padded like the image."""


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
    def forward(self, class_logits: Tensor, mask_logits: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """Match.

        Args:
            class_logits: (P, B, Q, C+1).
            mask_logits: P tensors (B, Q, h, w).
            targets: B targets.

        Returns:
            For each image, int64 (P, T) on its targets' device: the query of each target, -1 where there are more
            targets than queries.
        """
        costs = [
            self.cost(class_logits[:, b], [masks[b] for masks in mask_logits], target)
            for b, target in enumerate(targets)
        ]
        device = class_logits.device
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu()  # the step's only wait for the device
        assignments = []
        for cost, flat in zip(costs, on_host.split([cost.numel() for cost in costs]), strict=True):
            assignments.append(assign(flat.view(cost.shape)).to(device, non_blocking=True))
        return assignments

    def cost(self, class_logits: Tensor, mask_logits: Sequence[Tensor], target: Target) -> Tensor:
        """Return the cost (P, Q, T) of giving a target to a query, in one image, float32.

        Args:
            class_logits: (P, Q, C+1).
            mask_logits: P tensors (Q, h, w).
            target: T masks.
        """
        num_queries, labels, masks = class_logits.shape[1], target["labels"], target["masks"]
        if len(labels) == 0:
            return class_logits.new_zeros(len(class_logits), num_queries, 0, dtype=torch.float32)
        with torch.autocast(device_type=class_logits.device.type, enabled=False):
            points = torch.rand(1, self.num_points, 2, device=class_logits.device)
            predicted = torch.cat([sample_points(m.unsqueeze(0).float(), points) for m in mask_logits])
            wanted = sample_points(masks.unsqueeze(0).float(), points)
            class_cost = -class_logits.float().softmax(dim=-1)[:, :, labels]
            mask_cost = pairwise_sigmoid_cross_entropy(predicted, wanted)
            dice_cost = pairwise_dice(predicted, wanted)
            return self.cost_class * class_cost + self.cost_mask * mask_cost + self.cost_dice * dice_cost


def assign(cost: Tensor) -> Tensor:
    """Solve the assignment problems of `cost` (P, Q, T) on the CPU: int64 (P, T), -1 where no query is left."""
    cost = cost.clone()
    if not cost.isfinite().all():
        # A diverged model still gets an assignment, so that its loss, not the matcher, tells what happened.
        logger.warning("matching costs are not finite: the model has diverged or overflowed")
        cost = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
    assigned = torch.full((cost.shape[0], cost.shape[2]), -1, dtype=torch.int64)
    for prediction, costs in zip(assigned, cost.numpy(), strict=True):
        queries, target_ids = linear_sum_assignment(costs)
        prediction[torch.from_numpy(target_ids)] = torch.from_numpy(queries)
    return assigned


def pairwise_sigmoid_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of every pair of masks (Eq. 7's L_ce, as a matching cost).

    Args:
        logits: (..., Q, K).
        targets: (..., T, K) in [0, 1].

    Returns:
        (..., Q, T).
    """
    # BCE(x, t) = softplus(x) - x t, so one product serves both classes.
    product = logits @ targets.transpose(-1, -2)
    return (F.softplus(logits).sum(dim=-1, keepdim=True) - product) / logits.shape[-1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss, smoothed by one, of every pair of masks: (..., Q, K) and (..., T, K) to (..., Q, T)."""
    probabilities = logits.sigmoid()
    overlap = probabilities @ targets.transpose(-1, -2)
    sizes = probabilities.sum(dim=-1, keepdim=True) + targets.sum(dim=-1).unsqueeze(-2)
    return 1 - (2 * overlap + 1) / (sizes + 1)
