"""The op as PyTorch sees it: schema, shapes for tracing, and gradients. Its implementations register themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FORWARD = "mask2former::ms_deform_attn_forward"
BACKWARD = "mask2former::ms_deform_attn_backward"

LIBRARY = torch.library.Library("mask2former", "FRAGMENT")
# spatial_shapes: height and width of each level, joined. Symbolic, so that a compiled model takes images of any size.
_ARGUMENTS = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
for _name, _schema in (
    (FORWARD, f"({_ARGUMENTS}) -> Tensor"),
    (BACKWARD, f"(Tensor grad_output, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"),
):
    LIBRARY.define(_name.partition("::")[2] + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See `mask2former.ops.ms_deform_attn`; the device needs an implementation."""
    sizes = [size for shape in spatial_shapes for size in shape]
    return torch.ops.mask2former.ms_deform_attn_forward(value, sizes, sampling_locations, attention_weights)


@torch.library.register_fake(FORWARD)
def _forward_shape(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    B, _, M, D = value.shape
    return value.new_empty(B, locations.shape[1], M * D)


@torch.library.register_fake(BACKWARD)
def _backward_shapes(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


torch.library.register_autograd(FORWARD, _backward, setup_context=_remember)
