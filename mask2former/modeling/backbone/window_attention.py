"""Self-attention within windows of a feature map (Swin Transformer, Liu et al. 2021, Sec. 3.2).

Shapes: B batch, C channels, H and W size of a feature map in tokens, N tokens of a window (its size squared),
K windows of a map, E heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers import Linear, recomputed

INIT_STD = 0.02


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut maps (B, H, W, C), H and W multiples of the window size, into windows (B * K, N, C)."""
    _, _, W, C = x.shape
    x = x.view(-1, window, W // window, window, C)  # runtimes of other makers know no more than five dimensions
    return x.transpose(1, 2).reshape(-1, window * window, C)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Put windows (B * K, N, C) back into maps (B, height, width, C)."""
    x = windows.view(-1, width // window, window, window, windows.shape[-1])
    return x.transpose(1, 2).reshape(-1, height, width, windows.shape[-1])


def shifted_window_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return bool (K, 1, N, N), True for tokens of a cyclically shifted window that are no neighbours.

    After the shift, the last window of each row or column holds tokens of opposite borders of the map; each
    sees its own side only.
    """

    def side(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window).long() + (position >= size - window // 2).long()

    region = 3 * side(height)[:, None] + side(width)
    region = to_windows(region[None, :, :, None], window).flatten(1)
    return (region[:, :, None] != region[:, None, :]).unsqueeze(1)


def relative_position_index(window: int) -> Tensor:
    """Return int64 (N, N): the row of the bias table for each pair of tokens of a window."""
    position = torch.arange(window)
    offset = position[:, None] - position + window - 1
    rows = offset[:, None, :, None] * (2 * window - 1)
    return (rows + offset[None, :, None, :]).reshape(window * window, window * window)


def resize_bias_table(table: Tensor, length: int) -> Tensor:
    """Resize a relative position bias table (L, E) of another window size bicubically to (length, E)."""
    old, new = math.isqrt(table.shape[0]), math.isqrt(length)
    grid = table.float().t().reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).squeeze(0).t().to(table.dtype).contiguous()


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position (Eq. 4).

    Checkpoints made with another window size load: their bias table is resized.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        *,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=INIT_STD)
        self.register_load_state_dict_pre_hook(_adapt_window_size)

    def forward(self, x: Tensor, blocked: Tensor | None) -> Tensor:
        """Attend within windows (B * K, N, C), where `blocked`, bool (K, 1, N, N), does not forbid it."""
        index = self.relative_position_index
        N = index.shape[0]
        bias = self.relative_position_bias_table[index.flatten()].view(N, N, -1).permute(2, 0, 1).unsqueeze(0)
        if blocked is not None:
            bias = bias.masked_fill(blocked, -math.inf)
            bias = bias.expand(x.shape[0] // blocked.shape[0], *bias.shape).flatten(0, 1)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


def _adapt_window_size(module: WindowAttention, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    table = state_dict.get(prefix + "relative_position_bias_table")
    own = module.relative_position_bias_table
    if table is not None and table.shape != own.shape and table.shape[1:] == own.shape[1:]:
        state_dict[prefix + "relative_position_bias_table"] = resize_bias_table(table, len(own))
        # The index belongs to the window size of this model.
        state_dict[prefix + "relative_position_index"] = module.get_buffer("relative_position_index")


class Mlp(nn.Module):
    """Two linear layers with GELU between them; dropout after each."""

    def __init__(self, dim: int, hidden_dim: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to the same shape."""
        # GELU costs little to compute once more, and its output is a quarter of what a block would keep.
        project = self._project if self.drop.p else recomputed(self._project)
        return project(self.fc1(x))

    def _project(self, hidden: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(hidden))))
