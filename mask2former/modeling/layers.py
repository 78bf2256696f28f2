"""Small modules that the decoders share. Parameter names are those of published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mask2former.ops.cpu import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `ops.cpu.linear` where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)


def recomputed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `function`, without randomness, such that its activations are not kept but made anew in the backward pass.

    Compiled code is left as it is: the compiler makes this choice by itself.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`, computed by the fused kernel.

    Args:
        embed_dim: width of queries, keys, values and output.
        num_heads: divides `embed_dim`.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, E).
            key: (B, K, E).
            value: (B, K, E).
            mask: bool, broadcastable to (B, heads, Q, K); True where a query may look.

        Returns:
            (B, Q, E).
        """
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(output.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, *, num_layers: int) -> None:
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(Linear(n, m) for n, m in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, drop a residual branch for some images of a batch.

    Importing timm or torchvision for it would take longer than all of this package.

    Args:
        probability: of dropping; what is kept is scaled by 1 / (1 - probability).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)


def c2_xavier_fill(conv: nn.Conv2d) -> None:
    """Initialise a convolution as Caffe2's XavierFill does: uniform, variance 1 / fan-in; zero bias."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
