"""Transformer encoder of multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021, Sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mask2former.ops import ms_deform_attn
from mask2former.ops.cpu import softmax_of_few

from ..layers import Linear
from ..position_encoding import sine_tokens
from ..transformer import EncoderLayer

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
        pixel_sizes: Tensor,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, E).
            reference_points: (Q, 2), x and y in [0, 1].
            value: (B, S, E), the maps of all levels, flattened and joined.
            spatial_shapes: (height, width) of each level.
            pixel_sizes: (L, 2), 1 / width and 1 / height of each level, the unit of offsets.

        Returns:
            (B, Q, E).
        """
        points = (self.num_heads, self.num_levels, self.num_points)
        device = query.device.type
        # Locations need more than the eight bits of bfloat16: a map is up to hundreds of pixels wide.
        precise = query.float() if torch.is_autocast_enabled(device) else query
        with torch.autocast(device_type=device, enabled=False):
            offsets = self.sampling_offsets(precise)
        offsets = offsets.to(reference_points.dtype).unflatten(-1, (*points, 2))
        locations = torch.addcmul(reference_points[:, None, None, None], offsets, pixel_sizes[:, None])
        weights = softmax_of_few(self.attention_weights(query).unflatten(-1, (self.num_heads, -1)))
        output = ms_deform_attn(
            self.value_proj(value).unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            locations,
            weights.unflatten(-1, points[1:]),
        )
        return self.output_proj(output)


class DeformableEncoderLayer(EncoderLayer):
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
        super().__init__(
            MSDeformAttn(embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points),
            embed_dim=embed_dim,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
        )

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        pixel_sizes: Tensor,
    ) -> Tensor:
        """Map (B, S, E) to the same shape; `position` (1, S, E) is added to the queries; see `MSDeformAttn`."""
        x = self.residual(
            x,
            self.norm1,
            lambda y: self.self_attn(y + position, reference_points, y, spatial_shapes, pixel_sizes),
        )
        return self.residual(x, self.norm2, self.feed_forward)


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
        centres = [pixel_centres(h, w, device) for h, w in spatial_shapes]
        geometry = (torch.cat(centres), spatial_shapes, 2 * torch.stack([level[0] for level in centres]))
        x = torch.cat([f.flatten(2).transpose(1, 2) for f in features], dim=1)
        for layer in self.encoder.layers:
            if self.use_checkpoint and self.training:
                x = checkpoint(layer, x, position, *geometry, use_reentrant=False)
            else:
                x = layer(x, position, *geometry)
        levels = x.split([h * w for h, w in spatial_shapes], dim=1)
        maps = [level.view(x.shape[0], *shape, x.shape[2]) for level, shape in zip(levels, spatial_shapes, strict=True)]
        return [encoded.permute(0, 3, 1, 2) for encoded in maps]


def pixel_centres(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return x and y of every pixel's centre, row by row: float32 (height * width, 2), in (0, 1)."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
