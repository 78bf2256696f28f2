"""Sampling of masks at points, shared by matcher and criterion (Sec. 3.3; PointRend, Kirillov et al., CVPR 2020)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# N maps, K points: x and y in [-1, 1], the edges of the map, as `F.grid_sample` reads them. Pixel centres lie at
# (2 i + 1) / size - 1.

_GROUP = 5
"""Maps that are read together where many share points: few enough to keep all cores busy, even with ten maps."""
_VALUES_OF_CANDIDATE = 6
"""Two coordinates, what is read there, and what selecting takes."""


def values_at_once(device: torch.device) -> int:
    """Float32 values to work on together: on a CPU what stays in cache, elsewhere 1 GiB, where each call costs."""
    return 2**21 if device.type == "cpu" else 2**28


def random_points(*shape: int, device: torch.device) -> Tensor:
    """Draw uniform points (*shape, 2) from PyTorch's random state.

    On a CPU, PyTorch's generator seeds NumPy's fastest, which takes half of its time.
    """
    if device.type != "cpu":
        return torch.rand(*shape, 2, device=device).mul_(2).sub_(1)
    seed = torch.randint(2**63 - 1, (2,)).numpy()
    bits = np.random.SFC64(seed).random_raw(math.prod(shape))  # 64 for each point
    return torch.from_numpy(bits.view(np.int32)).float().mul_(2.0**-31).view(*shape, 2)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (N, H, W), each at its own points (N, K, 2), bilinearly; zero outside: (N, K)."""
    return F.grid_sample(maps.unsqueeze(1), points.unsqueeze(2), align_corners=False).flatten(1)


def sample_shared_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (N, H, W), all at the same points (K, 2), as `sample_points` does: (N, K).

    Maps are read in groups: within one, what follows from the points is computed once; several occupy all cores.
    """
    grouped = maps.unflatten(0, (-1, max(1, math.gcd(len(maps), _GROUP))))
    grid = points.view(1, -1, 1, 2).expand(len(grouped), -1, -1, -1)
    return F.grid_sample(grouped, grid, align_corners=False).flatten(0, 1).squeeze(2)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, *, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Draw points for each mask, of which many lie where it is undecided.

    Of `oversample_ratio * num_points` uniform candidates, the `importance_sample_ratio * num_points` are kept where
    logits are nearest to zero; uniform points make up the rest.

    Args:
        logits: (N, H, W).
        num_points: K.
        oversample_ratio: at least 1.
        importance_sample_ratio: in [0, 1].

    Returns:
        (N, K, 2).
    """
    num_uncertain = int(importance_sample_ratio * num_points)
    num_candidates = int(num_points * oversample_ratio)
    points = logits.new_empty(len(logits), num_points, 2)
    points[:, num_uncertain:] = random_points(len(logits), num_points - num_uncertain, device=logits.device)
    if num_uncertain:
        size = max(1, values_at_once(logits.device) // (_VALUES_OF_CANDIDATE * num_candidates))
        for maps, chosen in zip(logits.split(size), points[:, :num_uncertain].split(size), strict=True):
            candidates = random_points(len(maps), num_candidates, device=logits.device)
            nearest = smallest(sample_points(maps, candidates).abs_(), num_uncertain)
            pairs = torch.view_as_complex(candidates).gather(1, nearest)  # x and y move as one
            chosen.copy_(torch.view_as_real(pairs))
    return points


def smallest(values: Tensor, count: int) -> Tensor:
    """Return where the smallest of (..., n) are, (..., count), in any order."""
    if values.device.type != "cpu":
        return values.topk(count, largest=False, sorted=False).indices
    # NumPy selects with vector instructions: three times as fast as PyTorch, and the two differ only among equals.
    return torch.from_numpy(np.argpartition(values.numpy(), count - 1)[..., :count])
