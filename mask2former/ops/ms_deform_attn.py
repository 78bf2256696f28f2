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
        ValueError: if the shapes do not fit each other, or something is no floating point number.
    """
    library.check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    # A traced model, as for counting operations or for ONNX, consists of what PyTorch itself knows.
    plain = torch.jit.is_tracing() or _backend(value.device.type) == "reference"
    implementation = reference if plain else library
    return implementation.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
