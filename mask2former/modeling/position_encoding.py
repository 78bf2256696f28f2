"""Sine position encoding of image positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_tokens(
    height: int,
    width: int,
    channels: int,
    device: torch.device | str | None = None,
    *,
    temperature: float = 10000.0,
) -> Tensor:
    """Return the encoding (1, height * width, channels) of each position, row by row, float32, in [-1, 1].

    Half of the channels encode y, half x, as sines and cosines in turn, of wavelengths that grow geometrically up
    to `temperature`; the last row and column lie at 2 pi (Attention Is All You Need, Sec. 3.5, in two dimensions
    as in DETR).

    Raises:
        ValueError: if `channels` is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"a sine position encoding needs a multiple of 4 channels, not {channels}")
    frequencies = temperature ** (-torch.arange(channels // 4, device=device, dtype=torch.float32) * (4 / channels))
    y = _encode(height, frequencies)[:, None, :].expand(height, width, -1)
    x = _encode(width, frequencies)[None, :, :].expand(height, width, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1).unsqueeze(0)


def _encode(size: int, frequencies: Tensor) -> Tensor:
    """Encode the positions 1..size of one axis: (size, 2 * len(frequencies)), sine and cosine interleaved."""
    positions = torch.arange(1, size + 1, device=frequencies.device, dtype=torch.float32)
    angles = (positions / (size + 1e-6) * (2 * math.pi))[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
