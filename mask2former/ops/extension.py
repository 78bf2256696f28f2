"""Find the compiled ops: as installed with the package, in the cache, or by building them once into the cache."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from . import build, library

PACKAGE = Path(__file__).parent

logger = logging.getLogger(__name__)


def problem(device: str) -> str | None:
    """Load the compiled ops and return None, or return why there are none for this type of device."""
    if device not in ("cpu", "cuda"):
        return f"there is no compiled op for the device {device}"
    failure, cuda_failure = _load()
    return failure or (cuda_failure if device == "cuda" else None)


@functools.cache
def _load() -> tuple[str | None, str | None]:
    """Load the ops. Returns why there are none, and why there are none for GPUs, each None where there are."""
    try:
        path, cuda_failure = find_or_build()
    except (build.BuildError, OSError) as error:
        return f"the compiled op could not be built: {error}", None
    assert library.LIBRARY, "the schema comes before its implementations"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the compiled op {path} cannot be loaded: {error.__cause__ or error}", None
    return None, cuda_failure


def find_or_build() -> tuple[Path, str | None]:
    """Return the library of the ops, and why it holds none for GPUs, if so.

    Raises:
        BuildError: if there is none and none can be built.
        OSError: if there is no place for it.
    """
    cuda_failure = build.cuda_problem()
    if torch.version.cuda:
        path = _find(PACKAGE / build.library_name(cuda=True), cache_folder() / _cache_name(cuda=True))
        if path is None and cuda_failure is None:
            try:
                path = _build_once(cuda=True)
            except build.BuildError as error:
                cuda_failure = f"its CUDA part could not be built: {error}"
        if path is not None:
            return path, None
    path = _find(PACKAGE / build.library_name(cuda=False), cache_folder() / _cache_name(cuda=False))
    return path or _build_once(cuda=False), f"the compiled op is for CPUs alone: {cuda_failure}"


def cache_folder() -> Path:
    """Return where ops are built: `MASK2FORMER_CACHE`, else the user's cache folder."""
    if "MASK2FORMER_CACHE" in os.environ:
        return Path(os.environ["MASK2FORMER_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "mask2former")


def _cache_name(*, cuda: bool) -> str:
    name = build.library_name(cuda=cuda)
    # Machines with different GPUs may share a home.
    return name.replace("-cuda.", f"-cuda-{'-'.join(build.cuda_architectures())}.") if cuda else name


def _find(installed: Path, cached: Path) -> Path | None:
    if installed.is_file():
        return installed
    return cached if build.is_whole(cached) else None


def _build_once(*, cuda: bool) -> Path:
    path = _writable_folder() / _cache_name(cuda=cuda)
    with _lock(path.with_suffix(".lock")):
        if not build.is_whole(path):  # else another process has built it meanwhile
            logger.warning(
                "Building the compiled deformable attention op for %s, once: %s. This takes about a minute.",
                "CPU and GPU" if cuda else "CPU",
                path,
            )
            start = time.monotonic()
            build.build(path, cuda=cuda)
            logger.info("Built in %.0f seconds.", time.monotonic() - start)
    return path


def _writable_folder() -> Path:
    """The cache folder, or one of this user below the folder for temporary files where the cache is read-only."""
    folder = cache_folder()
    if _is_writable(folder):
        return folder
    # Windows has no user numbers; its folder for temporary files is the user's own.
    user = os.getuid() if hasattr(os, "getuid") else None
    temporary = Path(tempfile.gettempdir(), "mask2former" if user is None else f"mask2former-{user}")
    if not _is_writable(temporary):
        raise PermissionError(f"neither {folder} nor {temporary} can be written to; MASK2FORMER_CACHE names another")
    status = temporary.stat()
    if user is not None and (status.st_uid != user or status.st_mode & 0o022):
        raise PermissionError(f"{temporary} can be written to by others; MASK2FORMER_CACHE names another folder")
    logger.warning("%s cannot be written to, %s takes its place.", folder, temporary)
    return temporary


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that no two processes hold at once, and that ends with its process."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("Waiting for another process, which builds the deformable attention op: %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
