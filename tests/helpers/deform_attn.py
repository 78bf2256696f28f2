"""Inputs of the multi-scale deformable attention op, and the outputs and gradients to be had from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.ops import reference


class Inputs(NamedTuple):
    """Arguments of the op, and a gradient of its output."""

    value: Tensor
    spatial_shapes: list[tuple[int, int]]
    sampling_locations: Tensor
    attention_weights: Tensor
    grad_output: Tensor

    def to(self, device: torch.device | str) -> Inputs:
        return Inputs(*(x.to(device) if isinstance(x, Tensor) else x for x in self))


class Results(NamedTuple):
    output: Tensor
    grad_value: Tensor
    grad_locations: Tensor
    grad_weights: Tensor


def make_inputs(
    *,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
    weights_dtype: torch.dtype | None = None,
    locations_dtype: torch.dtype = torch.float32,
    batch: int = 2,
    queries: int = 5,
    spatial_shapes: tuple[tuple[int, int], ...] = ((5, 3), (1, 1), (2, 7)),
) -> Inputs:
    """Return random inputs with heads of `width` channels; some points are partly or wholly outside the map."""
    generator = torch.Generator().manual_seed(0)
    heads, points = 3, 4
    positions = sum(h * w for h, w in spatial_shapes)
    count = (batch, queries, heads, len(spatial_shapes), points)
    return Inputs(
        torch.randn(batch, positions, heads, width, generator=generator).to(dtype),
        list(spatial_shapes),
        (torch.rand(*count, 2, generator=generator) * 1.8 - 0.4).to(locations_dtype),
        torch.rand(count, generator=generator).to(weights_dtype or dtype),
        torch.randn(batch, queries, heads * width, generator=generator).to(dtype),
    )


def expected_results(inputs: Inputs) -> Results:
    """Compute with the reference in double precision, from the inputs as they are rounded."""
    value, locations, weights = (
        x.detach().double().requires_grad_()
        for x in (inputs.value, inputs.sampling_locations, inputs.attention_weights)
    )
    output = reference.ms_deform_attn(value, inputs.spatial_shapes, locations, weights)
    gradients = torch.autograd.grad(output, (value, locations, weights), inputs.grad_output.double())
    return Results(output.detach(), *gradients)


def assert_results_close(actual: Results, inputs: Inputs) -> None:
    """Compare with the reference, within what the types of the inputs can hold, and check the types themselves."""
    types = (inputs.value, inputs.value, inputs.sampling_locations, inputs.attention_weights)
    for ours, wanted, like in zip(actual, expected_results(inputs), types, strict=True):
        assert ours.dtype == like.dtype
        assert ours.shape == wanted.shape
        tolerance = max(4 * torch.finfo(like.dtype).eps, 1e-12)
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=8 * tolerance * scale)
