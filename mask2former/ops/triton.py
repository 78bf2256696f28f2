"""Multi-scale deformable attention in Triton, for NVIDIA GPUs on machines without a compiler.

Letters: B batch, S positions of all levels, M heads, D head width, Q queries, L levels, P points. Each program takes a
block of the B * Q * M rows of D channels. The backward pass adds to `grad_value` atomically and in no fixed order, so
that its last bits differ from run to run.
"""
# mypy: disable-error-code="no-untyped-def"
# (Triton gives the arguments of kernels their types when it launches them.)

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import library

MAX_LEVELS = 8
_ELEMENTS_OF_BLOCK = 1024  # of the (rows, channels) block that a program holds
_LEVELS = [f"level{i}" for i in range(MAX_LEVELS)]


@triton.jit
def _interpolate(location, size):
    """The two cells around a location along one axis: clamped, their shares and slopes, and whether one is inside."""
    position = location * size - 0.5
    inside = (position >= -1) & (position < size)
    position = tl.where(inside, position, 0.0)  # so that it can be converted
    floor = tl.floor(position)
    fraction = position - floor
    lower = floor.to(tl.int32)
    has_lower = inside & (lower >= 0)
    has_upper = inside & (lower + 1 < size)
    share0 = tl.where(has_lower, 1 - fraction, 0.0)
    share1 = tl.where(has_upper, fraction, 0.0)
    slope0 = tl.where(has_lower, -1.0, 0.0) * size
    slope1 = tl.where(has_upper, 1.0, 0.0) * size
    return inside, tl.maximum(lower, 0), tl.minimum(lower + 1, size - 1), share0, share1, slope0, slope1


@triton.jit
def _size_of_level(index: tl.constexpr, level0, level1, level2, level3, level4, level5, level6, level7):
    """Height and width, which arrive packed in one number for each level."""
    packed = level0
    if index == 1:
        packed = level1
    if index == 2:
        packed = level2
    if index == 3:
        packed = level3
    if index == 4:
        packed = level4
    if index == 5:
        packed = level5
    if index == 6:
        packed = level6
    if index == 7:
        packed = level7
    return (packed >> 32).to(tl.int32), (packed & 0x7FFFFFFF).to(tl.int32)


@triton.jit(do_not_specialize=["rows", "Q", "S", *_LEVELS])
def _forward_kernel(
    value, locations, weights, output,
    rows, Q, S, level0, level1, level2, level3, level4, level5, level6, level7,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_D)
    in_rows = row < rows
    mask = in_rows[:, None] & (channel < D)[None, :]
    pixels = value + ((row // M // Q * S * M + row % M) * D)[:, None] + channel[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=ACC)
    start = 0
    for level in tl.static_range(L):
        height, width = _size_of_level(level, level0, level1, level2, level3, level4, level5, level6, level7)
        for p in range(P):
            point = row * (L * P) + level * P + p
            x = tl.load(locations + 2 * point, mask=in_rows, other=-1.0).to(ACC)
            y = tl.load(locations + 2 * point + 1, mask=in_rows, other=-1.0).to(ACC)
            weight = tl.load(weights + point, mask=in_rows, other=0.0).to(ACC)
            in_x, left, right, left_share, right_share, _, _ = _interpolate(x, width)
            in_y, upper, lower, upper_share, lower_share, _, _ = _interpolate(y, height)
            read = mask & (in_x & in_y)[:, None]
            upper_row = (start + upper * width).to(tl.int64)
            lower_row = (start + lower * width).to(tl.int64)
            corner = tl.load(pixels + ((upper_row + left) * (M * D))[:, None], mask=read, other=0.0).to(ACC)
            total += (weight * upper_share * left_share)[:, None] * corner
            corner = tl.load(pixels + ((upper_row + right) * (M * D))[:, None], mask=read, other=0.0).to(ACC)
            total += (weight * upper_share * right_share)[:, None] * corner
            corner = tl.load(pixels + ((lower_row + left) * (M * D))[:, None], mask=read, other=0.0).to(ACC)
            total += (weight * lower_share * left_share)[:, None] * corner
            corner = tl.load(pixels + ((lower_row + right) * (M * D))[:, None], mask=read, other=0.0).to(ACC)
            total += (weight * lower_share * right_share)[:, None] * corner
        start += height * width
    tl.store(output + (row * D)[:, None] + channel[None, :], total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _corner_backward(value, grad_value, offsets, mask, grad, share):
    """Add a pixel's gradient; return the product of the pixel with the output's gradient, summed over channels."""
    pixel = tl.load(value + offsets, mask=mask, other=0.0).to(grad.dtype)
    tl.atomic_add(grad_value + offsets, share[:, None] * grad, mask=mask & (share != 0)[:, None], sem="relaxed")
    return tl.sum(pixel * grad, axis=1)


@triton.jit(do_not_specialize=["rows", "Q", "S", *_LEVELS])
def _backward_kernel(
    grad_output, value, locations, weights, grad_value, grad_locations, grad_weights,
    rows, Q, S, level0, level1, level2, level3, level4, level5, level6, level7,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_D)
    in_rows = row < rows
    mask = in_rows[:, None] & (channel < D)[None, :]
    pixels = ((row // M // Q * S * M + row % M) * D)[:, None] + channel[None, :]
    grad = tl.load(grad_output + (row * D)[:, None] + channel[None, :], mask=mask, other=0.0).to(ACC)
    start = 0
    for level in tl.static_range(L):
        height, width = _size_of_level(level, level0, level1, level2, level3, level4, level5, level6, level7)
        for p in range(P):
            point = row * (L * P) + level * P + p
            x = tl.load(locations + 2 * point, mask=in_rows, other=-1.0).to(ACC)
            y = tl.load(locations + 2 * point + 1, mask=in_rows, other=-1.0).to(ACC)
            weight = tl.load(weights + point, mask=in_rows, other=0.0).to(ACC)
            in_x, left, right, left_share, right_share, left_slope, right_slope = _interpolate(x, width)
            in_y, upper, lower, upper_share, lower_share, upper_slope, lower_slope = _interpolate(y, height)
            read = mask & (in_x & in_y)[:, None]
            upper_row = (start + upper * width).to(tl.int64)
            lower_row = (start + lower * width).to(tl.int64)
            offsets = pixels + ((upper_row + left) * (M * D))[:, None]
            upper_left = _corner_backward(value, grad_value, offsets, read, grad, weight * upper_share * left_share)
            offsets = pixels + ((upper_row + right) * (M * D))[:, None]
            upper_right = _corner_backward(value, grad_value, offsets, read, grad, weight * upper_share * right_share)
            offsets = pixels + ((lower_row + left) * (M * D))[:, None]
            lower_left = _corner_backward(value, grad_value, offsets, read, grad, weight * lower_share * left_share)
            offsets = pixels + ((lower_row + right) * (M * D))[:, None]
            lower_right = _corner_backward(value, grad_value, offsets, read, grad, weight * lower_share * right_share)
            upper_sum = left_share * upper_left + right_share * upper_right
            lower_sum = left_share * lower_left + right_share * lower_right
            grad_x = weight * (
                upper_share * (left_slope * upper_left + right_slope * upper_right)
                + lower_share * (left_slope * lower_left + right_slope * lower_right)
            )
            grad_y = weight * (upper_slope * upper_sum + lower_slope * lower_sum)
            grad_weight = upper_share * upper_sum + lower_share * lower_sum
            tl.store(grad_locations + 2 * point, grad_x.to(grad_locations.dtype.element_ty), mask=in_rows)
            tl.store(grad_locations + 2 * point + 1, grad_y.to(grad_locations.dtype.element_ty), mask=in_rows)
            tl.store(grad_weights + point, grad_weight.to(grad_weights.dtype.element_ty), mask=in_rows)
        start += height * width


def probe() -> None:
    """Compile and launch a kernel on the current GPU; raises what Triton raises, as without a C compiler."""
    value = torch.zeros(1, 1, 1, 16, device="cuda")
    forward(value, (1, 1), value.new_zeros(1, 1, 1, 1, 1, 2), value.new_zeros(1, 1, 1, 1, 1))


def forward(
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See `mask2former.ops.ms_deform_attn`; sums are taken in float32, or in float64 if `value` is of that type.

    Args:
        spatial_shapes: height and width of each level, joined.

    Raises:
        ValueError: if there are more than `MAX_LEVELS` levels.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    B, _, M, D = value.shape
    output = value.new_empty(B, sampling_locations.shape[1], M * D)
    if output.numel() == 0:
        return output
    tensors = (value.contiguous(), sampling_locations.contiguous(), attention_weights.contiguous(), output)
    _launch(_forward_kernel, tensors, value, spatial_shapes, sampling_locations)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `value`, `sampling_locations` and `attention_weights`, each in its own type.

    Args:
        grad_output: (B, Q, M * D).
        spatial_shapes: height and width of each level, joined.

    Raises:
        ValueError: if there are more than `MAX_LEVELS` levels.
        RuntimeError: if `torch.use_deterministic_algorithms` is on.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    expected = (value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])
    if tuple(grad_output.shape) != expected or grad_output.device != value.device:
        raise ValueError(f"grad_output has shape {tuple(grad_output.shape)}, not {expected}, or is on another device")
    locations, weights = sampling_locations.contiguous(), attention_weights.contiguous()
    if grad_output.numel() == 0:
        return value.new_zeros(value.shape), locations.new_zeros(locations.shape), weights.new_zeros(weights.shape)
    _alert_not_deterministic()
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    grad_value = torch.zeros(value.shape, dtype=dtype, device=value.device)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    tensors = (grad_output.contiguous(), value.contiguous(), locations, weights)
    gradients = (grad_value, grad_locations, grad_weights)
    _launch(_backward_kernel, (*tensors, *gradients), value, spatial_shapes, sampling_locations)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _check(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> None:
    pairs = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    library.check_arguments(value, pairs, locations, weights)


def _alert_not_deterministic() -> None:
    if torch.are_deterministic_algorithms_enabled():
        message = "the backward pass of deformable attention in Triton does not have a deterministic implementation"
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message)


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
) -> None:
    B, S, M, D = value.shape
    Q, L, P = (sampling_locations.shape[i] for i in (1, 3, 4))
    if L > MAX_LEVELS:
        raise ValueError(f"the Triton kernels take at most {MAX_LEVELS} levels, not {L}")
    # Numbers rather than a tensor of sizes: nothing has to be copied to the device. Never small enough for 32 bits.
    levels = [height << 32 | width for height, width in zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True)]
    levels += [1 << 32] * (MAX_LEVELS - L)
    block_d = triton.next_power_of_2(D)
    block_rows = max(1, _ELEMENTS_OF_BLOCK // block_d)
    rows = B * Q * M
    with torch.cuda.device_of(value):
        kernel[(triton.cdiv(rows, block_rows),)](
            *tensors, rows, Q, S, *levels,
            M=M, D=D, L=L, P=P, BLOCK_ROWS=block_rows, BLOCK_D=block_d,
            ACC=tl.float64 if value.dtype == torch.float64 else tl.float32,
        )  # fmt: skip
