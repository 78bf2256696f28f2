"""The op as PyTorch sees it: schema, shapes for tracing, and gradients. Its implementations register themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FORWARD = "mask2former::ms_deform_attn_forward"
BACKWARD = "mask2former::ms_deform_attn_backward"

MAX_SIDE = 1 << 24  # beyond it, coordinates in single precision do not tell pixels apart

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


def check_arguments(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raise ValueError for arguments that are none of the op's."""
    if value.ndim != 4 or sampling_locations.ndim != 6 or attention_weights.ndim != 5:
        raise ValueError(
            "ms_deform_attn takes value (B, S, M, D), sampling_locations (B, Q, M, L, P, 2) and attention_weights "
            f"(B, Q, M, L, P), not {tuple(value.shape)}, {tuple(sampling_locations.shape)} and "
            f"{tuple(attention_weights.shape)}"
        )
    B, S, M, D = value.shape
    P = sampling_locations.shape[4]
    if any(not 1 <= size <= MAX_SIDE for shape in spatial_shapes for size in shape):
        raise ValueError(f"each level has 1 to {MAX_SIDE} pixels a side, unlike one of {list(spatial_shapes)}")
    if not len(spatial_shapes) or P < 1 or M < 1 or D < 1:
        raise ValueError(f"nothing to sample: {len(spatial_shapes)} levels, {P} points, {M} heads of {D} channels")
    positions = sum(height * width for height, width in spatial_shapes)
    if positions != S:
        raise ValueError(f"the levels {list(spatial_shapes)} have {positions} positions, but value has {S}")
    expected = (B, sampling_locations.shape[1], M, len(spatial_shapes), P)
    if tuple(sampling_locations.shape) != (*expected, 2) or tuple(attention_weights.shape) != expected:
        raise ValueError(
            f"expected sampling_locations of shape {(*expected, 2)} and attention_weights of shape {expected}, not "
            f"{tuple(sampling_locations.shape)} and {tuple(attention_weights.shape)}"
        )
    tensors = (value, sampling_locations, attention_weights)
    if not all(x.is_floating_point() and x.device == value.device for x in tensors):
        found = ", ".join(f"{x.dtype} on {x.device}" for x in tensors)
        raise ValueError(f"ms_deform_attn takes floating point numbers on one device, not {found}")


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
