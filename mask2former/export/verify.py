"""Running what was exported, and comparing it with the model in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ExportError

TOLERANCE = 1e-3
"""Of a difference, as a share of the largest number in the output."""

Shape = tuple[int, int, int]  # images, height, width
Runner = Callable[[np.ndarray], Mapping[str, np.ndarray]]
Reference = Callable[[Tensor, Mapping[str, np.ndarray]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Comparison:
    """The largest difference between an exported file and PyTorch, for each output and size of input."""

    differences: Mapping[Shape, Mapping[str, float]]
    """Of numbers, as a share of the largest one; of labels and masks, the share of elements that differ."""

    @property
    def largest(self) -> float:
        """Of all; 0 if nothing could be run."""
        return max((value for outputs in self.differences.values() for value in outputs.values()), default=0.0)

    def text(self) -> str:
        """One line for each size."""
        return "\n".join(
            f"{n} x {h} x {w}: " + ", ".join(f"{name} {value:.1e}" for name, value in outputs.items())
            for (n, h, w), outputs in self.differences.items()
        )


def probe_images(shape: Shape, seed: int = 0) -> Tensor:
    """Pictures uint8 (N, 3, H, W) of smooth blotches with edges, for want of real ones."""
    count, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, max(2, height // 48), max(2, width // 48), generator=generator)
    fine = torch.rand(count, 3, height, width, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    edges = (smooth[:, :1] > 0.5).float()
    return (255 * (0.6 * smooth + 0.3 * edges + 0.1 * fine)).to(torch.uint8)


def compare(run: Runner, reference: Reference, shapes: Sequence[Shape]) -> Comparison:
    """Run a file and PyTorch on the same images of each shape.

    Args:
        run: of the exported file, from uint8 (N, 3, H, W) to its outputs by name.
        reference: from the same images, and what the file gave for them, to what it should give.

    Raises:
        ExportError: an output is missing, or has another shape.
    """
    differences = {}
    for shape in shapes:
        images = probe_images(shape)
        found = run(images.numpy())
        expected = reference(images, found)
        differences[shape] = {name: _difference(name, found, value.numpy()) for name, value in expected.items()}
    return Comparison(differences)


def check(comparison: Comparison, tolerance: float) -> None:
    """Raises ExportError unless all differences are within `tolerance`."""
    if not comparison.largest <= tolerance:  # NaN is none either
        raise ExportError(
            f"the exported model differs from PyTorch by more than {tolerance:.0e}, so nothing is kept of it; "
            f"by images x height x width:\n{comparison.text()}"
        )


def _difference(name: str, found: Mapping[str, np.ndarray], expected: np.ndarray) -> float:
    if name not in found or found[name].shape != expected.shape:
        shape = found[name].shape if name in found else "missing"
        raise ExportError(f"the output {name!r} of the exported model is {shape}; PyTorch gives {expected.shape}")
    if expected.dtype.kind in "iub":
        return float(np.mean(found[name] != expected))
    difference = np.abs(found[name] - expected).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), 1e-12))
