"""Exported files of any format, as one function from images to outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .description import read_description
from .errors import ExportError
from .onnx import OnnxSession
from .openvino import OpenVinoModel
from .pt2 import Pt2Program

RUNTIMES: dict[str, Callable[[Path], Any]] = {".onnx": OnnxSession, ".pt2": Pt2Program, ".xml": OpenVinoModel}
"""By the suffix of a file: what takes images uint8 (N, 3, H, W), gives outputs in their order, and has `metadata`."""


class ExportedFile:
    """An exported file in its runtime on the CPU, and what it says of its model."""

    def __init__(self, path: Path, runtime: Any) -> None:
        self._runtime = runtime
        self.description: dict[str, Any] = read_description(runtime.metadata, path)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name for images uint8 (N, 3, H, W), channels in the order that the description tells."""
        return dict(zip(self.description["outputs"], self._runtime(images), strict=True))


def open_exported(path: str | os.PathLike[str]) -> ExportedFile:
    """Load a file that `mask2former export` wrote.

    Raises:
        ExportError: it is not one, or its runtime is not installed.
        FileNotFoundError: there is no such file.
    """
    path = Path(path).expanduser()
    if path.suffix not in RUNTIMES:
        raise ExportError(f"{path} is no exported file: these end in {', '.join(RUNTIMES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return ExportedFile(path, RUNTIMES[path.suffix](path))
