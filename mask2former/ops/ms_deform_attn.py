"""The multi-scale deformable attention op: what it computes, and the checks that every implementation shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch, library, reference

# A compiled model keeps the implementation that was chosen while it was traced.
_backend = torch.compiler.assume_constant_result(dispatch.backend)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum, for each query and head, the values at a few points of each level, weighted (Deformable DETR, Eq. 3).

    Values between pixels are bilinear, values outside the map are zero, and pixel centres lie at
    `(i + 0.5) / size`.

    Args:
        value: (B, S, M, D), the maps of all levels flattened row by row and joined, S = sum of height * width.
        spatial_shapes: (height, width) of each of the L levels, as plain integers, so that no device has to be
            waited for.
        sampling_locations: (B, Q, M, L, P, 2), x and y in [0, 1] inside the map; anything else, NaN too, is outside.
        attention_weights: (B, Q, M, L, P), usually normalised over the last two dimensions.

    Returns:
        (B, Q, M * D).

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    # A traced model, as for counting operations or for ONNX, consists of what PyTorch itself knows.
    plain = torch.jit.is_tracing() or _backend(value.device.type) == "reference"
    implementation = reference if plain else library
    return implementation.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def _check_shapes(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    if value.ndim != 4 or sampling_locations.ndim != 6 or attention_weights.ndim != 5:
        raise ValueError(
            "ms_deform_attn takes value (B, S, M, D), sampling_locations (B, Q, M, L, P, 2) and attention_weights "
            f"(B, Q, M, L, P), not {tuple(value.shape)}, {tuple(sampling_locations.shape)} and "
            f"{tuple(attention_weights.shape)}"
        )
    B, S, M, _ = value.shape
    if any(height < 1 or width < 1 for height, width in spatial_shapes):
        raise ValueError(f"each level has at least one pixel, unlike one of {list(spatial_shapes)}")
    positions = sum(height * width for height, width in spatial_shapes)
    if positions != S:
        raise ValueError(f"the levels {list(spatial_shapes)} have {positions} positions, but value has {S}")
    expected = (B, sampling_locations.shape[1], M, len(spatial_shapes), sampling_locations.shape[4])
    if tuple(sampling_locations.shape) != (*expected, 2) or tuple(attention_weights.shape) != expected:
        raise ValueError(
            f"expected sampling_locations of shape {(*expected, 2)} and attention_weights of shape {expected}, not "
            f"{tuple(sampling_locations.shape)} and {tuple(attention_weights.shape)}"
        )
