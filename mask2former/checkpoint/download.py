"""Where weights lie: a path, a web address that is downloaded once, or the name of a published model."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlparse
from urllib.request import urlopen

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from mask2former.checkpoint.errors import CheckpointError
from mask2former.checkpoint.published import ZOO, get_checkpoint_url
from mask2former.files import replacing

logger = logging.getLogger(__name__)

# What short addresses stand for.
ADDRESSES = {"detectron2://": "https://dl.fbaipublicfiles.com/detectron2/"}
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 20

# Names that carry the start of their own checksum: Detectron2's and Mask2Former's zoo the MD5
# (`model_final_94dc52.pkl`), PyTorch's the SHA-256 (`resnet50-11ad3fa6.pth`).
_CHECKSUMS = (
    ("md5", re.compile(r"_([0-9a-f]{6})\.pkl$")),
    ("sha256", re.compile(r"-([0-9a-f]{8})\.pth?$")),
)


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return where weights lie on this machine, after downloading them if `path` is an address.

    Args:
        path: a file or a folder; a web address, or one that starts with `detectron2://`; or `zoo://` and the name of a
            published model, such as `zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep`. Files from the web
            are kept in the cache folder of iopath (`$FVCORE_CACHE`, by default `~/.torch/iopath_cache`).

    Raises:
        FileNotFoundError: if it is not there; the message says where to put it.
        CheckpointError: if a published model is not known, or a downloaded file is not what its name says.
    """
    address = _web_address(os.fspath(path))
    if address.startswith(("http://", "https://")):
        return _cached(address)
    file = Path(address).expanduser()
    if not file.exists():
        raise FileNotFoundError(
            f"no weights file {file} (looked in {file.absolute().parent}); put it there, "
            "or set MODEL.WEIGHTS to its place, to a web address, or to '' to start without"
        )
    return file


def _web_address(address: str) -> str:
    """Resolve the short forms of addresses."""
    if address.startswith(ZOO):
        try:
            return get_checkpoint_url(address.removeprefix(ZOO))
        except KeyError as error:
            raise CheckpointError(f"{address}: {error.args[0]}") from None
    for prefix, url in ADDRESSES.items():
        if address.startswith(prefix):
            return url + address.removeprefix(prefix)
    return address


def cached_file(address: str) -> Path | None:
    """Where the file of a web address lies on this machine; None if it was not downloaded."""
    file = _cache_file(_web_address(address))
    return file if file.is_file() else None


def _cached(address: str) -> Path:
    file = _cache_file(address)
    if file.is_file():
        return file
    with file_lock(str(file)):  # several processes of one machine download once
        if not file.is_file():
            try:
                _download(address, file)
            except (OSError, HTTPException) as error:
                raise FileNotFoundError(
                    f"cannot download {address} ({error}); get it by other means and put it at {file}"
                ) from error
    return file


def _cache_file(address: str) -> Path:
    """Where a file from the web is kept: by host, path and query; those of Detectron2's host as iopath keeps them."""
    url = urlparse(address)
    parts = [part for part in unquote(url.path).split("/") if part not in ("", ".", "..")]
    if url.query:
        parts.insert(len(parts) - 1, hashlib.sha256(url.query.encode()).hexdigest()[:16])
    if url.netloc != urlparse(ADDRESSES["detectron2://"]).netloc:
        host = re.sub(r"[^a-z0-9.-]", "_", url.netloc.rpartition("@")[2].lower())
        parts = ["hosts", host.strip("."), *parts]
    return Path(get_cache_dir(), *parts)


def _download(address: str, file: Path) -> None:
    logger.info("Downloading %s to %s", address, file)
    with urlopen(address, timeout=TIMEOUT) as response, replacing(file) as temporary:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with temporary.open("wb") as stream:
            size = _copy(response, stream, total=total, name=file.name)
        if total is not None and size != total:
            raise OSError(f"the connection ended after {size} of {total} bytes")
        _check(temporary, address, file.name)


def _copy(source: IO[bytes], target: IO[bytes], *, total: int | None, name: str) -> int:
    """Copy a stream, showing how far it is, and return its size in bytes."""
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, unit_divisor=1024, leave=False) as bar:
        while chunk := source.read(CHUNK):
            target.write(chunk)
            bar.update(len(chunk))
        return int(bar.n)


def _check(file: Path, address: str, name: str) -> None:
    for kind, pattern in _CHECKSUMS:
        match = pattern.search(name)
        if match is None:
            continue
        digest = hashlib.new(kind, usedforsecurity=False)
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        found = digest.hexdigest()
        if not found.startswith(match[1]):
            raise CheckpointError(
                f"{address} is not the file that {name} names: its {kind} begins with {found[: len(match[1])]}, not "
                f"{match[1]}. The download was damaged or the file was replaced; try again"
            )
