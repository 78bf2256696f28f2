"""The deformable attention op: time of the backends, and how close it comes to the machine's copy bandwidth.

Unavoidable traffic, in bytes: value, locations, weights and output once for the forward pass; for the backward pass
the gradient of the output, the three inputs again, and their gradients. Sampling points lie a few pixels around
each query's own place, as in a trained encoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from math import prod
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.benchmarks.backends import REFERENCE, implementations
from mask2former.benchmarks.machine import copy_bandwidth
from mask2former.benchmarks.models import DTYPES
from mask2former.benchmarks.results import Row
from mask2former.benchmarks.scenes import Size, size_name
from mask2former.benchmarks.timing import in_turn, ratios

# B batch, S positions of all levels (and queries), M heads, D head width, L levels, P points

NAME = "op"
STRIDES = (8, 16, 32)
M, D, P = 8, 32, 4
SPREAD = 3.0
"""Of sampling points around a query, in pixels of their level."""


class Example(NamedTuple):
    """Inputs of the op, and a gradient of its output."""

    value: Tensor
    levels: list[Size]
    locations: Tensor
    weights: Tensor
    gradient: Tensor


def run(args: argparse.Namespace) -> list[Row]:
    """Measure the backends in turn, forward, and forward and backward."""
    device = torch.device(args.device)
    backends = implementations(device, args.backend)
    bandwidth = copy_bandwidth(device, quick=args.quick)
    rows: list[Row] = []
    for size in args.size:
        for dtype in args.dtype:
            example = make_example(size, args.batch, DTYPES[dtype], device, args.seed)
            for backward in (False, True):
                run_one = forward_backward if backward else forward
                functions: dict[str, Callable[[], object]] = {
                    name: partial(run_one, function, example) for name, function in backends.items()
                }
                samples = in_turn(
                    functions, rounds=args.rounds, warmup=args.warmup, device=device, title=f"{size_name(size)} {dtype}"
                )
                case = {
                    "size": size_name(size),
                    "batch": str(args.batch),
                    "dtype": dtype,
                    "pass": "forward and backward" if backward else "forward",
                }
                rows += [_row(case, name, samples, traffic(example, backward), bandwidth) for name in backends]
    return rows


def _row(
    case: dict[str, str], backend: str, samples: dict[str, list[float]], traffic_bytes: int, bandwidth: float
) -> Row:
    seconds = samples[backend]
    rate = traffic_bytes / median(seconds)
    compared = backend != REFERENCE
    return Row(
        suite=NAME,
        case={**case, "backend": backend},
        seconds=seconds,
        versus=REFERENCE if compared else None,
        ratios=ratios(samples[REFERENCE], seconds) if compared else [],
        figures={"GB/s": rate / 1e9, "copy GB/s": bandwidth / 1e9, "share of copy %": 100 * rate / bandwidth},
    )


def make_example(size: Size, batch: int, dtype: torch.dtype, device: torch.device, seed: int) -> Example:
    """Return what a layer of the pixel decoder's encoder gives the op for images of `size`; locations in float32."""
    generator = torch.Generator().manual_seed(seed)
    levels = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    S = sum(map(prod, levels))
    centres = torch.cat([_centres(*level) for level in levels])  # (S, 2)
    scale = torch.tensor([(w, h) for h, w in levels]).view(-1, 1, 2)
    offsets = SPREAD * torch.randn(batch, S, M, len(levels), P, 2, generator=generator) / scale
    weights = torch.randn(batch, S, M, len(levels) * P, generator=generator).softmax(dim=-1)
    value = torch.randn(batch, S, M, D, generator=generator)
    return Example(
        value=value.to(device, dtype).requires_grad_(),
        levels=levels,
        locations=(centres.view(S, 1, 1, 1, 2) + offsets).to(device).requires_grad_(),
        weights=weights.view(batch, S, M, len(levels), P).to(device, dtype).requires_grad_(),
        gradient=torch.randn(batch, S, M * D, generator=generator).to(device, dtype),
    )


def traffic(example: Example, backward: bool) -> int:
    """Return the bytes that have to be read or written at least."""
    inputs = sum(x.nbytes for x in (example.value, example.locations, example.weights))
    output = example.gradient.nbytes
    return inputs + output + (2 * inputs + output if backward else 0)


@torch.no_grad()
def forward(function: Callable[..., Tensor], example: Example) -> Tensor:
    """Run the op."""
    return function(example.value, example.levels, example.locations, example.weights)


def forward_backward(function: Callable[..., Tensor], example: Example) -> tuple[Tensor, ...]:
    """Run the op, and compute the gradients of its three inputs."""
    output = function(example.value, example.levels, example.locations, example.weights)
    return torch.autograd.grad(output, (example.value, example.locations, example.weights), example.gradient)


def _centres(height: int, width: int) -> Tensor:
    """Return x and y (height * width, 2) of pixel centres, in [0, 1]."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)
