"""Writing weights files that appear whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

FORMATS = (".pkl", ".pth", ".safetensors")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file in the folder of `path`, and move it to `path` unless an error is raised meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor], *, author: str = "") -> None:
    """Write weights in the format that the name asks for: `.pkl` (Detectron2's), `.pth` or `.safetensors`.

    Args:
        path: where to; an older file is replaced, missing folders are made.
        weights: tensors by name.
        author: what a `.pkl` says of its origin.

    Raises:
        ValueError: for another ending.
    """
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: weights are written to files that end in one of {', '.join(FORMATS)}")
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
        elif path.suffix == ".pth":
            torch.save({"model": tensors}, temporary)
        else:
            # NumPy has no bfloat16.
            arrays = {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in tensors.items()}
            content = {"model": arrays, "__author__": author, "matching_heuristics": True}
            temporary.write_bytes(pickle.dumps(content, protocol=4))
