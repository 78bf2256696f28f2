"""Sampling of masks at points, shared by matcher and criterion (Sec. 3.3; PointRend, Kirillov et al., CVPR 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# N masks, K points


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly; zero outside.

    Args:
        maps: (N, C, H, W).
        points: (N, K, 2), x and y in [0, 1]; pixel centres lie at `(i + 0.5) / size`.

    Returns:
        (N, C, K).
    """
    return F.grid_sample(maps, 2 * points.unsqueeze(2) - 1, align_corners=False).squeeze(3)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, *, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Draw points of which many lie where a mask is undecided.

    Of `oversample_ratio * num_points` uniform candidates per mask, the `importance_sample_ratio * num_points` whose
    logits are nearest to zero are kept; uniform points make up the rest.

    Args:
        logits: (N, 1, H, W).
        num_points: K.
        oversample_ratio: at least 1.
        importance_sample_ratio: in [0, 1].

    Returns:
        (N, K, 2), x and y in [0, 1].
    """
    num_masks = len(logits)
    num_certain = num_points - int(importance_sample_ratio * num_points)
    num_uncertain = num_points - num_certain
    uniform = torch.rand(num_masks, num_certain, 2, device=logits.device)
    if num_uncertain == 0:
        return uniform
    candidates = torch.rand(num_masks, int(num_points * oversample_ratio), 2, device=logits.device)
    uncertainty = -sample_points(logits, candidates).squeeze(1).abs()
    chosen = uncertainty.topk(num_uncertain, dim=1, sorted=False).indices
    return torch.cat([candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2)), uniform], dim=1)
