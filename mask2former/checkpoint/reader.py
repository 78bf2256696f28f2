"""Reading checkpoint files without running anything in them."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors
import safetensors.torch
import torch
from iopath.common.file_io import HTTPURLHandler, PathManager, get_cache_dir
from torch import Tensor

# What short addresses stand for.
ADDRESSES = {"detectron2://": "https://dl.fbaipublicfiles.com/detectron2/"}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit. The message names the file and, where known, the way out."""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Args:
        path: a `.pkl` (as published), `.pth`, `.pt` or `.safetensors` file: a path, a web address, or one that
            starts with `detectron2://`. Files from the web are kept in the cache folder of iopath
            (`$FVCORE_CACHE`, by default `~/.torch/iopath_cache`).

    Returns:
        What the file holds, with its weights as tensors by name under "model", also if it holds nothing else.

    Raises:
        FileNotFoundError: if there is no such file, or it cannot be downloaded.
        CheckpointError: if the file is empty, truncated, of another format, or holds anything but data.
    """
    file = local_path(path)
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


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return where the file lies on this machine, after downloading it if `path` is an address.

    Raises:
        FileNotFoundError: if it is not there; the message says where to put it.
    """
    address = os.fspath(path)
    for prefix, url in ADDRESSES.items():
        if address.startswith(prefix):
            address = url + address.removeprefix(prefix)
    if not address.startswith(("http://", "https://")):
        file = Path(address).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"no weights file {file} (looked in {file.absolute().parent}); put it there, "
                "or set MODEL.WEIGHTS to its place, to a web address, or to '' to start without"
            )
        return file
    web = urlparse(address)
    cached = Path(get_cache_dir(), web.path.lstrip("/"))
    if cached.is_file():
        return cached
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    try:
        return Path(manager.get_local_path(address))
    except OSError as error:
        raise FileNotFoundError(
            f"cannot download {address} ({error}); get it by other means and put it at {cached}"
        ) from error


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
