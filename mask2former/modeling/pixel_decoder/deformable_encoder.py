"""Transformer encoder of multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021, Sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mask2former.ops import ms_deform_attn

from ..constants import cached_constant
from ..layers import Linear, linear
from ..position_encoding import sine_tokens

# B batch, S positions of all levels, E embedding width, M heads, L levels, P points


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: each query looks at a few learned points of every level (Eq. 3)."""

    def __init__(self, *, embed_dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(embed_dim, points * 2)
        self.attention_weights = Linear(embed_dim, points)
        self.value_proj = Linear(embed_dim, embed_dim)
        self.output_proj = Linear(embed_dim, embed_dim)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Point p of head h starts at p + 1 steps along the direction of h, all with the same weight."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions /= directions.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * steps[None, None, :, None]  # (M, 1, P, 2)
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for zero in (
            self.sampling_offsets.weight,
            self.attention_weights.weight,
            self.attention_weights.bias,
        ):
            zero.zero_()
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, E).
            reference_points: (Q, 2), x and y in [0, 1].
            value: (B, S, E), the maps of all levels, flattened and joined.
            spatial_shapes: (height, width) of each level.

        Returns:
            (B, Q, E).
        """
        points = (self.num_heads, self.num_levels, self.num_points)
        scale = _inverse_sizes(tuple(spatial_shapes), reference_points.dtype, reference_points.device)
        # Scaled weights in place of scaled offsets: the product has far fewer elements to visit.
        scale = scale[None, :, None, :].expand(*points, 2).flatten()
        projection = self.sampling_offsets
        # Locations need more than the eight bits of bfloat16: a map is up to hundreds of pixels wide.
        with torch.autocast(device_type=query.device.type, enabled=False):
            weight, bias = projection.weight * scale[:, None], projection.bias * scale
            offsets = linear(query.to(weight.dtype), weight, bias)
        locations = reference_points[:, None] + offsets.unflatten(-1, (-1, 2))
        output = ms_deform_attn(
            self.value_proj(value).unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            locations.unflatten(2, points),
            _softmax(self.attention_weights(query).unflatten(-1, (self.num_heads, -1))).unflatten(-1, points[1:]),
        )
        return self.output_proj(output)


def _softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension, a dozen of elements."""
    if x.device.type != "cpu":
        return x.softmax(dim=-1)
    # PyTorch's kernel takes as many rows at a time as a vector holds, if these lie next to each other.
    return x.flatten(0, -2).t().contiguous().softmax(dim=0).t().contiguous().view(x.shape)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each with residual, dropout and LayerNorm."""

    def __init__(
        self,
        *,
        embed_dim: int,
        dim_feedforward: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = Linear(embed_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Map (B, S, E) to the same shape; `position` (1, S, E) is added to the queries."""
        attended = self.self_attn(x + position, reference_points, x, spatial_shapes)
        x = self.norm1(x + self.dropout(attended))
        hidden = self.dropout(linear(x, self.linear1.weight, self.linear1.bias, relu=True))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class DeformableEncoder(nn.Module):
    """A stack of layers; a module of its own because published parameter names say `encoder.layers`."""

    def __init__(self, layers: Sequence[DeformableEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class MSDeformAttnTransformerEncoder(nn.Module):
    """Encode feature maps of several scales together.

    Args:
        embed_dim: channels of every map, a multiple of 4 and of `num_heads`.
        dim_feedforward: width of the feed-forward networks.
        num_layers: number of layers.
        num_heads: attention heads.
        num_levels: number of maps.
        num_points: points per head and level.
        dropout: probability, in training.
        use_checkpoint: recompute each layer's activations in the backward pass, to save memory.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        dim_feedforward: int,
        num_layers: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim).normal_())
        self.encoder = DeformableEncoder(
            [
                DeformableEncoderLayer(
                    embed_dim=embed_dim,
                    dim_feedforward=dim_feedforward,
                    num_heads=num_heads,
                    num_levels=num_levels,
                    num_points=num_points,
                    dropout=dropout,
                )
                for _ in range(num_layers)
            ]
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the encoded maps, each (B, E, h, w) like its input, with channels last in memory."""
        spatial_shapes = [(f.shape[2], f.shape[3]) for f in features]
        device = features[0].device
        position = torch.cat(
            [
                sine_tokens(h, w, self.level_embed.shape[1], device) + embed
                for (h, w), embed in zip(spatial_shapes, self.level_embed, strict=True)
            ],
            dim=1,
        )
        reference_points = torch.cat([pixel_centres(h, w, device) for h, w in spatial_shapes])
        x = torch.cat([f.flatten(2).transpose(1, 2) for f in features], dim=1)
        for layer in self.encoder.layers:
            if self.use_checkpoint and self.training:
                x = checkpoint(layer, x, position, reference_points, spatial_shapes, use_reentrant=False)
            else:
                x = layer(x, position, reference_points, spatial_shapes)
        levels = x.split([h * w for h, w in spatial_shapes], dim=1)
        maps = [level.unflatten(1, shape) for level, shape in zip(levels, spatial_shapes, strict=True)]
        return [encoded.permute(0, 3, 1, 2) for encoded in maps]


@cached_constant
def pixel_centres(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return x and y of every pixel's centre, row by row: float32 (height * width, 2), in (0, 1)."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)


@cached_constant
def _inverse_sizes(spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 1 / width and 1 / height of each level: (L, 2)."""
    return torch.tensor([(1 / width, 1 / height) for height, width in spatial_shapes], dtype=dtype, device=device)
