"""Sampling of masks at points, shared by matcher and criterion (Sec. 3.3; PointRend, Kirillov et al., CVPR 2020)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# N groups of maps, C maps that share points, K points

_GROUP = 5
"""Maps that are read together where many share points: few enough to keep all cores busy, even with ten maps."""
_CANDIDATE_VALUES = 2**21
"""At most so many candidates are looked at together (but at least one group's): memory stays bounded, and in cache."""


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly; zero outside.

    Args:
        maps: (N, C, H, W).
        points: (N, K, 2), x and y in [0, 1]; pixel centres lie at `(i + 0.5) / size`.

    Returns:
        (N, C, K).
    """
    return F.grid_sample(maps, _grid(points), align_corners=False).squeeze(3)


def sample_shared_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at the same points, as `sample_points` does.

    Maps are read in groups: within one, what follows from the points is computed once; several occupy all cores.

    Args:
        maps: (C, H, W).
        points: (K, 2).

    Returns:
        (C, K).
    """
    grouped = maps.unflatten(0, (-1, max(1, math.gcd(len(maps), _GROUP))))
    grid = _grid(points.unsqueeze(0)).expand(len(grouped), -1, -1, -1)
    return F.grid_sample(grouped, grid, align_corners=False).flatten(0, 1).squeeze(2)


def _grid(points: Tensor) -> Tensor:
    """Points (N, K, 2) in the coordinates of `F.grid_sample`, (N, K, 1, 2)."""
    return (2 * points.unsqueeze(2)).sub_(1)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, *, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Draw points of which many lie where a mask is undecided.

    Of `oversample_ratio * num_points` uniform candidates per group, each map keeps the
    `importance_sample_ratio * num_points` where its logits are nearest to zero; uniform points make up the rest.

    Args:
        logits: (N, C, H, W); the C maps of a group choose from the same candidates.
        num_points: K.
        oversample_ratio: at least 1.
        importance_sample_ratio: in [0, 1].

    Returns:
        (N, C, K, 2), x and y in [0, 1].
    """
    num_groups, num_maps = logits.shape[:2]
    num_certain = num_points - int(importance_sample_ratio * num_points)
    num_uncertain = num_points - num_certain
    uniform = torch.rand(num_groups, num_certain, 2, device=logits.device).unsqueeze(1)
    if num_uncertain == 0:
        return uniform.expand(-1, num_maps, -1, -1)
    num_candidates = int(num_points * oversample_ratio)
    candidates = torch.rand(num_groups, num_candidates, 2, device=logits.device)
    points = candidates.new_empty(num_groups, num_maps, num_points, 2)
    points[:, :, num_uncertain:] = uniform
    chunk = max(1, _CANDIDATE_VALUES // max(1, num_maps * num_candidates))
    for start in range(0, num_groups, chunk):
        part = slice(start, start + chunk)
        points[part, :, :num_uncertain] = _least_certain(logits[part], candidates[part], num_uncertain)
    return points


def _least_certain(logits: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the candidates (N, K', 2) where each logit map (N, C, H, W) is nearest to zero, (N, C, count, 2)."""
    distance = sample_points(logits, candidates).abs_()
    chosen = _smallest(distance, count)
    pairs = torch.view_as_complex(candidates).unsqueeze(1).expand(-1, logits.shape[1], -1)  # x and y move as one
    return torch.view_as_real(pairs.gather(2, chosen))


def _smallest(values: Tensor, count: int) -> Tensor:
    """Return where the smallest of (..., n) are, (..., count), in any order."""
    if values.device.type != "cpu":
        return values.topk(count, largest=False, sorted=False).indices
    # NumPy selects with vector instructions: three times as fast as PyTorch, and the two differ only among equals.
    return torch.from_numpy(np.argpartition(values.numpy(), count - 1)[..., :count])
