"""Reading checkpoint files without running anything in them."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mask2former.checkpoint.download import local_path
from mask2former.checkpoint.errors import CheckpointError
from mask2former.checkpoint.pickle_data import read_pickle, walk

DESCRIPTION = "mask2former"
"""The key of transformers' `config.json` under which our description of a model stands."""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Args:
        path: path or address (see `mask2former.checkpoint.download.local_path`) of a `.pkl` (as published), `.pth`,
            `.pt`, `.bin` or `.safetensors` file, or a folder as transformers writes it, with `config.json` and
            `model.safetensors`.

    Returns:
        What the file holds, with its weights as tensors by name under "model", also if it holds nothing else. Of a
        folder also the content of `config.json`, under "config".

    Raises:
        FileNotFoundError: if there is no such file, or it cannot be downloaded.
        CheckpointError: if the file is empty, truncated, of another format, or holds anything but data; if the folder
            is not one of transformers, or holds another kind of model.
    """
    file = local_path(path)
    if file.is_dir():
        config = read_transformers_config(file)
        return {**_read_file(_weights_in(file)), "config": config}
    return _read_file(file)


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a file holds beside its weights, see `mask2former.checkpoint.description`; {} if nothing.

    The weights themselves are not read.

    Raises:
        FileNotFoundError, CheckpointError: as `read_checkpoint`.
    """
    file = local_path(path)
    if _READERS.get(file.suffix, _read_torch) is not _read_torch:
        return {}  # formats of weights alone
    content = _read_file(file, partial(_read_torch, mapped=True))
    return {name: value for name, value in content.items() if name != "model"}


def read_transformers_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a folder as transformers writes it.

    Raises:
        CheckpointError: if it is missing, no JSON, or that of another kind of model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} is a folder without config.json, so it is no checkpoint of transformers; "
            "MODEL.WEIGHTS must be such a folder or a weights file"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or lists in lists without end
        raise CheckpointError(f"{file} is not JSON ({error}); its download or copy did not finish") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "mask2former":
        raise CheckpointError(f"{file} describes a model of type {kind!r}, not 'mask2former'")
    return config


def _weights_in(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} has a config.json, but neither model.safetensors nor pytorch_model.bin; get one of them"
    )


def _read_file(file: Path, reader: Callable[[Path], Any] | None = None) -> dict[str, Any]:
    if file.suffix not in _READERS:
        raise CheckpointError(f"{file} is no checkpoint: the name must end in one of {', '.join(_READERS)}")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file} is empty; its download or copy did not finish. Delete it and get it again")
    try:
        content = (reader or _READERS[file.suffix])(file)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle or archive can raise anything
        raise CheckpointError(
            f"{file} cannot be read; it is truncated, or no {file.suffix} checkpoint ({str(error)[:300]})"
        ) from error
    return _with_tensors(content, file)


def _read_torch(file: Path, *, mapped: bool = False) -> Any:
    """The content of a file; with `mapped`, tensors are not read before somebody looks at their numbers."""
    _check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if "nsupported global" not in str(error):
            raise
        raise CheckpointError(f"{file} holds more than tensors and plain data, so it is not read: {error}") from error
    size = file.stat().st_size
    return walk(content, lambda value: _check_tensor(value, size), size)


def _check_archive(file: Path) -> None:
    """Refuse an archive that unpacks to more than it holds; PyTorch writes its own uncompressed."""
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return  # the format before PyTorch 1.6
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > file.stat().st_size:
            raise CheckpointError(f"{file} unpacks to {unpacked} bytes, more than it has; PyTorch writes no such files")


def _check_tensor(value: Any, size: int) -> Any:
    """Refuse tensors that reach beyond the bytes of a file of this `size`, or that say where others lie."""
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided or value.is_quantized:
            raise ValueError("a tensor that is sparse, nested or quantised")
        if value.device.type == "cpu" and value.numel() * value.element_size() > size:
            raise ValueError(f"a tensor of shape {tuple(value.shape)}, more than the file holds")
    return value


def _read_safetensors(file: Path) -> Any:
    return safetensors.torch.load_file(file)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pkl": read_pickle,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
}


def _with_tensors(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not weights by name")
    checkpoint = dict(content)
    if "model" not in checkpoint:
        checkpoint = {"model": checkpoint.get("state_dict", checkpoint)}
    if not isinstance(checkpoint["model"], Mapping) or not checkpoint["model"]:
        raise CheckpointError(f"{file} holds no weights by name under 'model'")
    checkpoint["model"] = {name: _tensor(value, name, file) for name, value in checkpoint["model"].items()}
    return checkpoint


def _tensor(value: Any, name: Any, file: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value) if isinstance(value, (np.ndarray, np.generic, bool, int, float)) else None
    if not isinstance(name, str) or array is None or array.dtype.kind not in "biuf":
        raise CheckpointError(f"{file}: entry {repr(name)[:100]} is a {type(value).__name__}, not an array of numbers")
    return torch.from_numpy(array)
