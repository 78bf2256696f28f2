"""The skeleton of every conversion: parallel, restartable, no half-written file.

A conversion makes one target file of each source. A target that exists is whole, since it is written atomically,
and is left as it is: an interrupted conversion goes on where it stopped.
"""

import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mask2former.data.datasets.metadata import PathLike, first_few
from mask2former.data.datasets.semantic import find_files
from mask2former.data.images import DataError
from mask2former.files import write_bytes

logger = logging.getLogger(__name__)

_CHUNK = 4  # sources that a process takes at a time; so many more are converted after an interrupt


def convert_files(
    make: Callable[[Any], bytes],
    jobs: Sequence[tuple[Any, Path]],
    *,
    title: str,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes `make(source)` to the target of each job (source, target), with a progress bar.

    Args:
        make: can be pickled; raises `DataError` or `OSError` for a bad source.
        title: of the progress bar.
        workers: processes; 1 converts in this one.
        overwrite: make targets again that exist.

    Raises:
        DataError: after all sources were tried, of those that are bad.
    """
    todo = [job for job in jobs if overwrite or not job[1].exists()]
    problems = []
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=title, unit="file") as progress:
        for problem in _run(partial(_convert, make), todo, workers):
            progress.update()
            if problem is not None:
                problems.append(problem)
    if problems:
        raise DataError(f"{title}: {len(problems)} of {len(jobs)} files failed:\n  " + "\n  ".join(problems[:10]))


def convert_to_json(
    make: Callable[[Any], bytes],
    sources: Sequence[tuple[Any, str]],
    target: Path,
    *,
    categories: Sequence[dict[str, Any]],
    title: str,
    workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes one COCO annotation file of many sources; the parts lie in a hidden folder beside it meanwhile.

    Args:
        make: (source) → the JSON `{"image": {...}, "annotations": [...]}`; files that it writes itself must be
            written atomically.
        sources: (source, image id), in the order of the file.
        target: annotations of exactly these images, if there are any already, are left as they are.
        categories: COCO's records for the file.
        title, workers, overwrite: as in `convert_files`.
    """
    if not overwrite and _image_ids(target) == [image_id for _, image_id in sources]:
        logger.info("%s is there already", target)
        return
    folder = target.with_name(f".{target.stem}.parts")
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    parts = [folder / f"{image_id}.json" for _, image_id in sources]
    jobs = [(source, part) for (source, _), part in zip(sources, parts, strict=True)]
    convert_files(make, jobs, title=title, workers=workers)
    content: dict[str, list] = {"images": [], "annotations": [], "categories": list(categories)}
    for part in parts:
        record = json.loads(part.read_bytes())
        content["images"].append(record["image"])
        for annotation in record["annotations"]:
            numbered = {"id": len(content["annotations"]) + 1} if "segmentation" in annotation else {}
            content["annotations"].append({**numbered, **annotation})
    write_bytes(target, json.dumps(content).encode())
    shutil.rmtree(folder)
    logger.info("%s: %d images", target, len(parts))


def list_sources(folder: Path, suffixes: Sequence[str], hint: str) -> dict[str, str]:
    """`find_files`, by name; no folder or no file in it is a `FileNotFoundError` that ends with `hint`."""
    found = find_files(folder, suffixes) if folder.is_dir() else {}
    if not found:
        raise FileNotFoundError(f"no files *{suffixes[0]} in {folder.absolute()}; {hint}")
    return dict(sorted(found.items()))


def check_partners(found: Iterable[str], other: Iterable[str], folder: PathLike, hint: str) -> None:
    """Raises `DataError` for names in `found` without a file in `folder`, whose names are `other`."""
    missing = sorted(set(found) - set(other))
    if missing:
        raise DataError(f"{folder}: lacks {len(missing)} files: {first_few(missing)}; {hint}")


def check_count(found: int, expected: int, what: str) -> None:
    """Says whether a set is complete. A part of one is fine to work with, but its numbers are not comparable."""
    if found == expected:
        logger.info("%s: complete, %d images", what, found)
    else:
        logger.warning("%s: %d images, the complete set has %d", what, found, expected)


def encode_image(array: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    """An image file of an array of a mode that Pillow knows."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def _run(convert: Callable[[Any], str | None], jobs: Sequence[Any], workers: int) -> Iterator[str | None]:
    if workers <= 1 or len(jobs) <= 1:
        yield from map(convert, jobs)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)))
    try:
        yield from pool.map(convert, jobs, chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def _convert(make: Callable[[Any], bytes], job: tuple[Any, Path]) -> str | None:
    """Does one job; returns what went wrong."""
    try:
        write_bytes(job[1], make(job[0]))
    except (DataError, OSError) as error:
        return str(error)
    return None


def _image_ids(path: Path) -> list[Any] | None:
    if not os.path.isfile(path):
        return None
    try:
        return [image["id"] for image in json.loads(path.read_bytes())["images"]]
    except (ValueError, KeyError, TypeError):
        logger.warning("%s: no annotation file; it is made again", path)
        return None
