"""Programs of `torch.export`, which need PyTorch but not this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from .description import KEY

_FILE = f"{KEY}.json"
_MOST = 128  # times the divisor, that a side may have


def write_pt2(path: Path, graph: nn.Module, images: Tensor, *, dynamic: Sequence[str], divisor: int, text: str) -> None:
    """Export a graph and save it.

    Args:
        path: ends in `.pt2`.
        images: an example.
        dynamic: of "batch", "height" and "width" those that may vary; sides by multiples of `divisor`.
        text: the description.
    """
    sides = {axis: divisor * Dim(f"{name}_parts", min=1, max=_MOST) for axis, name in ((2, "height"), (3, "width"))}
    sizes: dict[int, Any] = {0: Dim("batch", min=1), **sides}
    names = {0: "batch", 2: "height", 3: "width"}
    shapes = {axis: size for axis, size in sizes.items() if names[axis] in dynamic}
    with torch.no_grad():
        program = torch.export.export(graph, (images,), dynamic_shapes=(shapes or None,), strict=False)
    torch.export.save(program, path, extra_files={_FILE: text})


class Pt2Program:
    """A saved program, on the CPU."""

    def __init__(self, path: Path | str) -> None:
        files: dict[str, Any] = {_FILE: ""}
        self._program: Any = torch.export.load(path, extra_files=files).module()
        text = files[_FILE]
        self.metadata: Mapping[str, str] = {KEY: text} if text else {}

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs in their order for images uint8 (N, 3, H, W)."""
        return tuple(output.numpy() for output in self._program(torch.from_numpy(images)))
