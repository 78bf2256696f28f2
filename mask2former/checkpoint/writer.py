"""Writing weights files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mask2former.files import replacing

FORMATS = (".pkl", ".pth", ".safetensors")


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
