"""The layers of masked attention decoders (Sec. 3.2), one step each; there is no dropout, as published."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear, MultiheadAttention
from ..transformer import ResidualLayer

# B batch, Q queries, K memory positions, E embedding width


class SelfAttentionLayer(ResidualLayer):
    """Queries attend to each other."""

    def __init__(self, *, embed_dim: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__(pre_norm=pre_norm)
        self.self_attn = MultiheadAttention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map `x` (B, Q, E) to the same shape; `position` is added to queries and keys."""
        return self.residual(x, self.norm, lambda y: self.self_attn(y + position, y + position, y))


class CrossAttentionLayer(ResidualLayer):
    """Queries attend to the positions of an image that their mask leaves open (Sec. 3.2.1, Eq. 2)."""

    def __init__(self, *, embed_dim: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__(pre_norm=pre_norm)
        self.multihead_attn = MultiheadAttention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Map `x` (B, Q, E) to the same shape.

        Args:
            x: queries, (B, Q, E).
            position: their position embeddings, added to queries.
            key: (B, K, E), position encoding included.
            value: (B, K, E).
            mask: bool, broadcastable to (B, heads, Q, K); True where a query may look.
        """
        return self.residual(x, self.norm, lambda y: self.multihead_attn(y + position, key, value, mask=mask))


class FFNLayer(ResidualLayer):
    """Two linear layers with ReLU between them."""

    def __init__(self, *, embed_dim: int, dim_feedforward: int, pre_norm: bool) -> None:
        super().__init__(pre_norm=pre_norm)
        self.linear1 = Linear(embed_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, Q, E) to the same shape."""
        return self.residual(x, self.norm, lambda y: self.linear2(F.relu(self.linear1(y))))
