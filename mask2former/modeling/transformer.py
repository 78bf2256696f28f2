"""The transformer of DETR (Carion et al., ECCV 2020, Appendix A.3), which reads one feature map."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Linear, MultiheadAttention
from .position_encoding import sine_tokens

# B batch, Q queries, S positions of the feature map, E embedding width


class _Layer(nn.Module):
    """Self-attention and a feed-forward network, each with residual, dropout and LayerNorm."""

    def __init__(self, *, embed_dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim, num_heads, dropout=dropout)
        self.linear1 = Linear(embed_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def _residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))

    def _attend_to_itself(self, x: Tensor, position: Tensor) -> Tensor:
        return self.self_attn(x + position, x + position, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class TransformerEncoderLayer(_Layer):
    """Positions of a feature map look at each other."""

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map `x` (B, S, E) to the same shape; `position` is added to queries and keys."""
        x = self._residual(x, self.norm1, lambda y: self._attend_to_itself(y, position))
        return self._residual(x, self.norm2, self._feed_forward)


class TransformerDecoderLayer(_Layer):
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

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map `x` (B, Q, E) to the same shape.

        Args:
            x: queries.
            position: their position embeddings, added to them wherever they look.
            key: (B, S, E), position encoding included.
            value: (B, S, E).
        """
        x = self._residual(x, self.norm1, lambda y: self._attend_to_itself(y, position))
        x = self._residual(x, self.norm2, lambda y: self.multihead_attn(y + position, key, value))
        return self._residual(x, self.norm3, self._feed_forward)


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
