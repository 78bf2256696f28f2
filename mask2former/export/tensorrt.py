"""Deformable attention as a node that TensorRT has a plugin for; no other runtime takes such a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttn

# B batch, S positions of all levels, M heads, D head width, Q queries, L levels, P points

PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"
DOMAIN = "trt"
VERSION = "2"
"""Of the plugin; TensorRT has it from 10.11 on, and calls 1, which takes and gives the same, deprecated."""


class _Plugin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """The shape of the result, for tracing: (B, Q, M, D)."""
        return value.new_zeros(locations.shape[0], locations.shape[1], value.shape[2], value.shape[3])

    @staticmethod
    def symbolic(graph: Any, *inputs: Any) -> Any:
        """The node."""
        return graph.op(f"{DOMAIN}::{PLUGIN}", *inputs, plugin_version_s=VERSION, plugin_namespace_s="")


class PluginDeformAttn(nn.Module):
    """What a `MSDeformAttn` computes, with the plugin in the place of the op."""

    def __init__(self, attention: MSDeformAttn) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        pixel_sizes: Tensor,
    ) -> Tensor:
        """See `MSDeformAttn.forward`."""
        layer = self.attention
        points = (layer.num_heads, layer.num_levels, layer.num_points)
        offsets = layer.sampling_offsets(query).unflatten(-1, (*points, 2))
        locations = reference_points[:, None, None, None] + offsets * pixel_sizes[:, None]
        weights = layer.attention_weights(query).unflatten(-1, (layer.num_heads, -1)).softmax(dim=-1)
        values = layer.value_proj(value).unflatten(-1, (layer.num_heads, -1))
        shapes = torch.stack([torch.stack([torch.as_tensor(side) for side in shape]) for shape in spatial_shapes])
        areas = shapes[:, 0] * shapes[:, 1]
        starts = areas.cumsum(0) - areas
        output = _Plugin.apply(values, shapes.int(), starts.int(), locations, weights.unflatten(-1, points[1:]))
        return layer.output_proj(output.flatten(2))
