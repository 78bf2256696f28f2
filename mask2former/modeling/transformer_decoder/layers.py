"""The layers of transformer decoders: attention or feed-forward, each with residual, dropout and LayerNorm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear, MultiheadAttention

# B batch, Q queries, K memory positions, E embedding width


class SelfAttentionLayer(nn.Module):
    """Queries attend to each other."""

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim, num_heads, dropout=dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map `x` (B, Q, E) to the same shape; `position` is added to queries and keys."""
        value = self.norm(x) if self.pre_norm else x
        query = value + position
        x = x + self.dropout(self.self_attn(query, query, value))
        return x if self.pre_norm else self.norm(x)


class CrossAttentionLayer(nn.Module):
    """Queries attend to the positions of an image that their mask leaves open (Sec. 3.2.1, Eq. 2)."""

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(embed_dim, num_heads, dropout=dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Map `x` (B, Q, E) to the same shape.

        Args:
            x: queries, (B, Q, E).
            position: their position embeddings, added to queries.
            key: (B, K, E), position encoding included.
            value: (B, K, E).
            mask: bool, broadcastable to (B, heads, Q, K); True where a query may look.
        """
        query = (self.norm(x) if self.pre_norm else x) + position
        x = x + self.dropout(self.multihead_attn(query, key, value, mask=mask))
        return x if self.pre_norm else self.norm(x)


class FFNLayer(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, *, embed_dim: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.linear1 = Linear(embed_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, Q, E) to the same shape."""
        hidden = self.dropout(F.relu(self.linear1(self.norm(x) if self.pre_norm else x)))
        x = x + self.dropout(self.linear2(hidden))
        return x if self.pre_norm else self.norm(x)
