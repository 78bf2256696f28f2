"""Kernels for CPUs: what PyTorch computes too, but in the way that is fastest on the processor at hand.

They are for eager execution alone: what is traced, exported or compiled holds PyTorch's plain operators.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .tracing import is_traced

LINEAR_VARIABLE = "MASK2FORMER_CPU_LINEAR"
"""Environment variable: `linear` or `convolution` fixes the kernel of `linear`; `auto`, the default, measures."""
LINEAR_KERNELS = ("auto", "linear", "convolution")

convolution_is_faster: bool | None = None
"""What was measured, None before; to be set where a process shall choose as another did."""

# Elements of the input: up to so many PyTorch computes a convolution itself, and slowly.
_LARGEST_SLOW_CONVOLUTION = 20480
# A convolution must be clearly faster: runs on one machine should choose alike.
_MARGIN = 1.25


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map (..., n) to (..., m) with `weight` (m, n), as `F.linear` does.

    In float32 it may be a 1x1 convolution, the same sums in another order: oneDNN's convolutions use AVX-512 on every
    CPU that has it, the matrix products behind `F.linear` only on some, and then take twice as long.

    Raises:
        ValueError: if `LINEAR_VARIABLE` names no kernel.
    """
    if (
        is_eager(x)
        and x.dtype == torch.float32
        and x.numel() > _LARGEST_SLOW_CONVOLUTION
        and not torch.is_autocast_enabled("cpu")
        and _takes_convolution()
    ):
        return _convolution(x, weight, bias)
    return F.linear(x, weight, bias)


def softmax_of_few(x: Tensor) -> Tensor:
    """Softmax over the last dimension of (..., rows, n), where n is a dozen."""
    if not is_eager(x):
        return x.softmax(dim=-1)
    # PyTorch's kernel takes as many rows at a time as a vector holds, if these lie next to each other.
    return x.flatten(0, -2).t().contiguous().softmax(dim=0).t().contiguous().view(x.shape)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a large result. On a CPU it is numpy's, which asks the system for large pages: filling them the first
    time is several times as fast.
    """
    if device.type != "cpu" or dtype == torch.bfloat16:  # which numpy lacks
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.empty(tuple(shape), dtype=torch.empty(0, dtype=dtype).numpy().dtype))


def is_eager(x: Tensor) -> bool:
    """Tell whether `x` is on a CPU and what happens to it is done now, and not written down for later."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor  # and no stand-in, as tools use that follow shapes
        and not is_traced()
    )


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    image = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, n, 1, rows), channels last in memory
    image = F.conv2d(image, weight[:, :, None, None], bias)
    return image.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def _takes_convolution() -> bool:
    """Measure both kernels once, in some milliseconds, unless `LINEAR_VARIABLE` says which to take."""
    global convolution_is_faster
    kernel = os.environ.get(LINEAR_VARIABLE, "auto")
    if kernel not in LINEAR_KERNELS:
        raise ValueError(f"{LINEAR_VARIABLE} is {kernel!r}; it must be one of {list(LINEAR_KERNELS)}")
    if kernel != "auto":
        return kernel == "convolution"
    if convolution_is_faster is None:
        convolution_is_faster = torch.backends.mkldnn.is_available() and _is_measured_faster()
    return convolution_is_faster


def _is_measured_faster() -> bool:
    # In a thread of its own, which knows nothing of the modes (profilers, counters, gradients) that the caller is in.
    with ThreadPoolExecutor(max_workers=1) as thread:
        seconds = thread.submit(_measure).result()
    return _MARGIN * seconds[1] < seconds[0]


def _measure() -> list[float]:
    """Return the seconds that `F.linear` and the convolution take, the best of some runs in turn.

    At one size: they differ by their instructions, and these are the same for all widths.
    """
    x, weight = torch.ones(1024, 256), torch.ones(512, 256)
    kernels: list[Callable[..., Tensor]] = [F.linear, _convolution]
    best = [float("inf")] * len(kernels)
    with torch.no_grad():
        for _ in range(6):  # the first warms up
            for i, kernel in enumerate(kernels):
                start = time.perf_counter()
                kernel(x, weight, None)
                best[i] = min(best[i], time.perf_counter() - start)
    return best
