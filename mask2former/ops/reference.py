"""Multi-scale deformable attention in plain PyTorch: the definition that every other implementation is held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See `mask2former.ops.ms_deform_attn`."""
    # B batch, S positions of all levels, M heads, D head width, Q queries, L levels, P points
    B, _, M, D = value.shape
    _, Q, _, L, P, _ = sampling_locations.shape
    # Locations are not rounded to the precision of the values: bfloat16 cannot tell neighbouring pixels apart.
    dtype = torch.promote_types(torch.promote_types(value.dtype, sampling_locations.dtype), torch.float32)
    levels = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    grids = 2 * sampling_locations.to(dtype) - 1  # grid_sample counts from -1 to 1
    sampled = []
    for level, (height, width) in enumerate(spatial_shapes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(B * M, D, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).reshape(B * M, Q, P, 2)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    points = torch.stack(sampled, dim=-2)  # (B*M, D, Q, L, P)
    weights = attention_weights.transpose(1, 2).reshape(B * M, 1, Q, L, P)
    output = (points * weights).sum(dim=(-2, -1))  # (B*M, D, Q)
    return output.reshape(B, M * D, Q).transpose(1, 2).to(value.dtype)
