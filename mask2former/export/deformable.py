"""Multi-scale deformable attention from operators that every runtime computes right: gathers and products.

`GridSample`, which PyTorch's own definition would become, is computed wrongly by some versions of TensorRT
(NVIDIA/TensorRT #4813), and sampling locations (B, Q, M, L, P, 2) have more dimensions than some runtimes know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttn

# B batch, Q queries, M heads, L levels, P points, D head width, h and w size of a level


class GatheredDeformAttn(nn.Module):
    """What a `MSDeformAttn` computes, with its weights; no tensor has more than five dimensions."""

    def __init__(self, attention: MSDeformAttn) -> None:
        super().__init__()
        self.num_heads, self.num_levels = attention.num_heads, attention.num_levels
        self.num_points = attention.num_points
        self.attention_weights, self.value_proj = attention.attention_weights, attention.value_proj
        self.output_proj = attention.output_proj
        self.offsets = _level_by_level(attention)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        pixel_sizes: Tensor,
    ) -> Tensor:
        """See `MSDeformAttn.forward`."""
        heads = (self.num_heads, self.num_points)
        offsets = self.offsets(query).chunk(2 * self.num_levels, dim=-1)
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(dim=-1)
        weights_of_level = weights.chunk(self.num_levels, dim=-1)
        maps = self.value_proj(value)
        sums, start = [], 0
        for level, (height, width) in enumerate(spatial_shapes):
            x, y = (offsets[2 * level + axis].unflatten(-1, heads) for axis in (0, 1))
            x = x + (reference_points[:, 0] * width - 0.5)[:, None, None]
            y = y + (reference_points[:, 1] * height - 0.5)[:, None, None]
            corners = self._corners(maps[:, start : start + height * width], height, width)
            sums.append(_sample(corners, height, width, x, y, weights_of_level[level]))
            start = start + height * width  # traced, it is a tensor, not to be changed in place
        return self.output_proj(torch.stack(sums).sum(dim=0).reshape(query.shape[0], -1, query.shape[2]))

    def _corners(self, level: Tensor, height: int, width: int) -> Tensor:
        """Of a map (B, h*w, M*D) the four neighbours of every point between pixels, borders included, side by side.

        Returns:
            (B, (h+1)*(w+1), M, 4*D), zero outside of the map: upper left, upper right, lower left, lower right.
        """
        padded = F.pad(level.unflatten(1, (height, width)), (0, 0, 1, 1, 1, 1))
        corners = [
            padded[:, top : top + height + 1, left : left + width + 1].unflatten(-1, (self.num_heads, -1))
            for top in (0, 1)
            for left in (0, 1)
        ]
        return torch.cat(corners, dim=-1).flatten(1, 2)


def _sample(corners: Tensor, height: int, width: int, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of a map's values at points x and y in pixels, each (B, Q, M, P) like their weights.

    Returns:
        (B * Q * M, D).
    """
    M, D4 = corners.shape[2:]
    # At a border's far side a point sees zeros alone, so that what lies further outside can be moved there.
    x, y = _at_most(x.clamp(min=-1), width), _at_most(y.clamp(min=-1), height)
    left, top = _at_most(x.floor(), width - 1), _at_most(y.floor(), height - 1)
    right_share, lower_share = x - left, y - top
    lower = weights * lower_share
    upper = weights - lower
    lower_right, upper_right = lower * right_share, upper * right_share
    shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-1)
    place = ((top + 1) * (width + 1) + (left + 1)).long()
    image = torch.arange(x.shape[0], device=x.device)[:, None, None, None] * ((height + 1) * (width + 1))
    head = torch.arange(M, device=x.device)[:, None]
    rows = corners.reshape(-1, D4).index_select(0, ((image + place) * M + head).flatten())
    values = rows.reshape(-1, 4 * weights.shape[-1], D4 // 4)
    return (shares.reshape(-1, 1, 4 * weights.shape[-1]) @ values).flatten(1)


def _at_most(x: Tensor, limit: int) -> Tensor:
    """Clamp to a size, which is a tensor while a graph is traced; `clamp` would take its value at that time."""
    return x.minimum(x.new_ones(()) * limit)


@torch.no_grad()
def _level_by_level(attention: MSDeformAttn) -> nn.Linear:
    """The layer of offsets with its outputs in the order (L, 2, M, P), so that x and y of a level lie together."""
    layer = attention.sampling_offsets
    shape = (attention.num_heads, attention.num_levels, attention.num_points, 2)
    order = torch.arange(layer.out_features).view(shape).permute(1, 3, 0, 2).flatten()
    sorted_layer = nn.Linear(layer.in_features, layer.out_features)
    sorted_layer.weight.copy_(layer.weight[order])
    sorted_layer.bias.copy_(layer.bias[order])
    return sorted_layer
