"""The transformer of DETR (Carion et al., ECCV 2020, Appendix A.3), and what layers of all decoders share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Linear, MultiheadAttention
from .position_encoding import sine_tokens

# B batch, Q queries, S positions of the feature map, E embedding width


class ResidualLayer(nn.Module):
    """A layer of branches, each with dropout, a residual around it, and a LayerNorm after or before it."""

    def __init__(self, *, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add what `branch` makes of `x` to it."""
        if self.pre_norm:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))


class EncoderLayer(ResidualLayer):
    """Self-attention of any kind and a feed-forward network; how attention is called, a subclass says."""

    def __init__(
        self, self_attn: nn.Module, *, embed_dim: int, dim_feedforward: int, dropout: float, pre_norm: bool = False
    ) -> None:
        super().__init__(dropout=dropout, pre_norm=pre_norm)
        self.self_attn = self_attn
        self.linear1 = Linear(embed_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Map (..., E) to the same shape."""
        hidden = F.relu(self.linear1(x), inplace=not torch.is_grad_enabled())
        return self.linear2(self.dropout(hidden))


class TransformerEncoderLayer(EncoderLayer):
    """Positions of a feature map look at each other."""

    def __init__(self, *, embed_dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(
            MultiheadAttention(embed_dim, num_heads, dropout=dropout),
            embed_dim=embed_dim,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            pre_norm=pre_norm,
        )

    def attend_to_itself(self, x: Tensor, position: Tensor) -> Tensor:
        """Self-attention of `x` (B, S, E); `position` is added to queries and keys."""
        return self.residual(x, self.norm1, lambda y: self.self_attn(y + position, y + position, y))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map `x` (B, S, E) to the same shape; `position` is added to queries and keys."""
        return self.residual(self.attend_to_itself(x, position), self.norm2, self.feed_forward)


class TransformerDecoderLayer(TransformerEncoderLayer):
    """Queries look at each other, then at the feature map."""

    def __init__(self, *, embed_dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        self.multihead_attn = MultiheadAttention(embed_dim, num_heads, dropout=dropout)
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(  # type: ignore[override]  # a decoder layer reads a memory, too
        self, x: Tensor, position: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Map `x` (B, Q, E) to the same shape.

        Args:
            x: queries.
            position: their position embeddings, added to them wherever they look.
            key: (B, S, E), position encoding included.
            value: (B, S, E).
        """
        x = self.attend_to_itself(x, position)
        x = self.residual(x, self.norm2, lambda y: self.multihead_attn(y + position, key, value))
        return self.residual(x, self.norm3, self.feed_forward)


class TransformerEncoder(nn.Module):
    """Encoder layers; with `pre_norm` a LayerNorm follows the last."""

    def __init__(
        self, *, embed_dim: int, num_heads: int, dim_feedforward: int, num_layers: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                dim_feedforward=dim_feedforward,
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map `x` (B, S, E) to the same shape; see `TransformerEncoderLayer`."""
        for layer in self.layers:
            x = layer(x, position)
        return self.norm(x)


class TransformerDecoder(nn.Module):
    """Decoder layers, which share the LayerNorm of their results."""

    def __init__(
        self, *, embed_dim: int, num_heads: int, dim_feedforward: int, num_layers: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                dim_feedforward=dim_feedforward,
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return the queries (B, Q, E) after each layer, normalised; see `TransformerDecoderLayer`."""
        results = []
        for layer in self.layers:
            x = layer(x, position, key, value)
            results.append(self.norm(x))
        return results


def flatten_map(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values (B, S, E) of a map (B, E, h, w), and the sine encoding (1, S, E) of their positions."""
    _, channels, height, width = feature.shape
    return feature.flatten(2).transpose(1, 2), sine_tokens(height, width, channels, feature.device)
