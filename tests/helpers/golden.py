"""Figures of the published model, and the formula-made weights and images they belong to.

A model filled by `fill_by_name` has weights that depend on the names and shapes of its state dict alone, so its
outputs can be compared with figures recorded elsewhere, without a download.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent.parent / "golden"
CONSTANTS = ("pixel_mean", "pixel_std", "empty_weight")


def load(name: str) -> dict[str, Tensor]:
    """Return the arrays of `tests/golden/<name>.npz`."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


@torch.no_grad()
def fill_by_name(model: nn.Module, prefix: str = "") -> None:
    """Set every floating-point entry of the state dict by a formula of its name (after `prefix`) and shape."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith(CONSTANTS):
            tensor.copy_(_entry(prefix + name, tuple(tensor.shape)))


def _entry(name: str, shape: tuple[int, ...]) -> Tensor:
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return torch.from_numpy(1 + 0.1 * np.abs(noise))
    if name.endswith(("running_mean", "bias")):
        return torch.from_numpy(0.1 * noise)
    if len(shape) < 2:
        return torch.from_numpy(np.asarray(1 + 0.1 * noise))
    return torch.from_numpy(noise / np.sqrt(np.prod(shape[1:])).astype(np.float32))


def golden_image(height: int, width: int) -> Tensor:
    """Return a smooth picture (3, height, width), whole numbers in [0, 255] as float32."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    channels = [np.sin(x / (7 + 3 * c)) * np.cos(y / (5 + 2 * c)) for c in range(3)]
    return torch.from_numpy(np.round(127.5 + 127.5 * np.stack(channels)).astype(np.float32))
