"""A model, images of files, and a folder that receives pictures and results."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mask2former.checkpoint.description import task_of
from mask2former.d2 import comm
from mask2former.data.images import DataError
from mask2former.evaluation.output import encode_png
from mask2former.files import remove_leftovers, write_bytes
from mask2former.predict.classes import Classes
from mask2former.predict.files import ImageFile, file_name, output_names
from mask2former.predict.inputs import Picture, read_file
from mask2former.predict.journal import Entry, Journal
from mask2former.predict.predictor import Predictor
from mask2former.predict.results import result_png, write_json, write_result
from mask2former.version import __version__


@dataclass(frozen=True)
class Outcome:
    """What became of some images, in all processes."""

    predicted: int
    """Those that the folder has predictions of."""
    before: int
    """Those of them that a former run did."""
    skipped: list[str]
    """Those that could not be read."""


def predict_files(
    predictor: Predictor,
    images: Sequence[ImageFile],
    folder: Path,
    *,
    pictures: bool = True,
    batch_size: int = 1,
    overwrite: bool = False,
) -> Outcome:
    """Write pictures, and predictions in COCO's formats, of the one output that a model makes; with a progress bar.

    Images that a former run did, with the same settings, are not done again, unless they have changed since. Where
    several processes run, as under torchrun, each does its share, and the first one writes the JSON file.

    Args:
        predictor: of one task.
        images: see `find_images`.
        folder: made if missing. It gets `NAME.png` for each image; `predictions.jsonl`, see `Journal`; and in the end,
            also if that is Ctrl-C, what `mask2former.predict.results` tells.
        pictures: whether to write `NAME.png`.
        batch_size: see `Predictor.stream`.
        overwrite: do all images anew; what the folder says of others is forgotten.

    Returns:
        The number of images that were done, and those that could not be read, which are named on standard error.

    Raises:
        ValueError: the folder has predictions with other settings.
    """
    task = task_of(predictor.cfg)
    journal = _open_folder(folder, overwrite)
    entries = journal.open(_settings(predictor, task))
    names = output_names(images, {file: entry.name for file, entry in entries.items()})
    todo = {
        file_name(image): (image, name)
        for image, name in zip(images, names, strict=True)
        if not _is_done(image, entries.get(file_name(image)), folder, task, pictures)
    }
    comm.synchronize()  # before anyone adds to what the others read
    mine = list(todo.values())[comm.get_rank() :: comm.get_world_size()]
    skipped: list[str] = []
    try:
        with journal, _progress(len(mine)) as bar:
            for result in predictor.stream(_read(mine, skipped, bar), batch_size=batch_size):
                image, name = todo[result.name]
                if pictures:
                    write_bytes(folder / f"{name}.png", encode_png(result.draw()))
                journal.append(result.name, name, _version(image), write_result(result, folder, name))
                bar.update()
    finally:
        if comm.get_world_size() == 1:
            _finish(journal, images, folder, predictor, task)
    comm.synchronize()
    if comm.get_world_size() > 1 and comm.is_main_process():
        _finish(journal, images, folder, predictor, task)
    everywhere = [name for names in comm.all_gather(skipped) for name in names]
    return Outcome(len(images) - len(everywhere), len(images) - len(todo), everywhere)


def _open_folder(folder: Path, overwrite: bool) -> Journal:
    journal = Journal(folder, rank=comm.get_rank())
    if comm.is_main_process():
        remove_leftovers(folder)
        if overwrite:
            journal.clear()
    comm.synchronize()
    return journal


def _progress(count: int) -> tqdm:
    return tqdm(total=count, unit="image", disable=not comm.is_main_process())


def _read(mine: Sequence[tuple[ImageFile, str]], skipped: list[str], bar: tqdm) -> Iterator[Picture]:
    for image, _ in mine:
        try:
            picture = read_file(image)
        except (DataError, OSError) as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            skipped.append(file_name(image))
            bar.update()
        else:
            yield picture


def _finish(journal: Journal, images: Sequence[ImageFile], folder: Path, predictor: Predictor, task: str) -> None:
    """Write the JSON file: what former runs did and this one was not asked for, then its images in their order."""
    entries = journal.entries()
    asked = [entries.pop(file_name(image)) for image in images if file_name(image) in entries]
    write_json(folder, task, Classes.of(predictor.metadata, task).categories, [*entries.values(), *asked])


def _is_done(image: ImageFile, entry: Entry | None, folder: Path, task: str, pictures: bool) -> bool:
    if entry is None or entry.version != _version(image):
        return False
    needed = [folder / f"{entry.name}.png"] if pictures else []
    if task != "instance":
        needed.append(result_png(task, folder, entry.name))
    return all(path.exists() for path in needed)


def _version(image: ImageFile) -> tuple[int, ...]:
    """Size and time of change of a file; nothing of an address or a missing file."""
    if isinstance(image, str) or not image.exists():
        return ()
    status = image.stat()
    return status.st_size, status.st_mtime_ns


def _settings(predictor: Predictor, task: str) -> dict[str, Any]:
    """What predictions depend on, by the names under which users know it."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    weights = cfg.MODEL.WEIGHTS
    file = Path(weights).expanduser()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "", ""
    return {
        "version": __version__,
        "task": task,
        "weights": [str(file.resolve()), *_version(file)] if file.exists() else [weights],
        "threshold": predictor.score_threshold,
        "tiles": None if predictor.tiles is None else [*predictor.tiles.sides, *predictor.tiles.steps],
        "config": hashlib.sha256(cfg.dump().encode()).hexdigest(),
    }
