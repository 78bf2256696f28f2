"""Reading checkpoint files without running anything in them."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mask2former.checkpoint.download import local_path
from mask2former.checkpoint.errors import CheckpointError


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
    except ValueError as error:  # not JSON, or not UTF-8
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


def _read_file(file: Path) -> dict[str, Any]:
    if file.suffix not in _READERS:
        raise CheckpointError(f"{file} is no checkpoint: the name must end in one of {', '.join(_READERS)}")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file} is empty; its download or copy did not finish. Delete it and get it again")
    try:
        content = _READERS[file.suffix](file)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle or archive can raise anything
        raise CheckpointError(
            f"{file} cannot be read; it is truncated, or no {file.suffix} checkpoint ({error})"
        ) from error
    return _with_tensors(content, file)


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported global" not in str(error):
            raise
        raise CheckpointError(f"{file} holds more than tensors and plain data, so it is not read: {error}") from error


def _read_pickle(file: Path) -> Any:
    with file.open("rb") as stream:
        # Python 2 wrote the bytes of arrays as str; latin1 maps them one to one.
        return _DataUnpickler(stream, file=file).load()


def _read_safetensors(file: Path) -> Any:
    return safetensors.torch.load_file(file)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pkl": _read_pickle,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
}


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `codecs.encode`, by which Python 3 writes bytes in the older pickle protocols."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _admitted_globals() -> dict[tuple[str, str], Any]:
    """Return all that a pickle may name: containers, numbers and what NumPy arrays are rebuilt by."""
    admitted: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset):
        for module in ("builtins", "__builtin__"):
            admitted[module, kind.__name__] = kind
    # NumPy's own answer to how an array is rebuilt, in the spellings of all its versions.
    array = np.zeros(1, np.float32)
    rebuilders: list[Any] = [array.__reduce__()[0], array.__reduce_ex__(5)[0], array[0].__reduce__()[0]]
    for rebuild in rebuilders:
        package = rebuild.__module__.rpartition(".")[2]
        for core in ("numpy.core", "numpy._core"):
            admitted[f"{core}.{package}", rebuild.__name__] = rebuild
    return admitted


_ADMITTED = _admitted_globals()


class _DataUnpickler(pickle.Unpickler):
    """Unpickler that builds plain data and arrays, and refuses everything else by name."""

    def __init__(self, stream: Any, *, file: Path) -> None:
        super().__init__(stream, encoding="latin1")
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        """Return the admitted object of that name."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self._file} asks for {module}.{name}, which is no plain data, so it is not read"
            ) from None


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
    array = np.asarray(value)
    if not isinstance(name, str) or array.dtype.kind not in "biuf":
        raise CheckpointError(f"{file}: entry {name!r} is a {type(value).__name__}, not an array of numbers")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
