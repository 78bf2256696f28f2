"""A model, a list of images, and a folder that receives pictures and results."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mask2former.checkpoint.description import SWITCHES, task_of
from mask2former.d2.config import CfgNode
from mask2former.data.images import DataError
from mask2former.evaluation.output import encode_png
from mask2former.files import write_bytes
from mask2former.predict.files import ImageFile, output_names
from mask2former.predict.inputs import read_file
from mask2former.predict.predictor import Predictor
from mask2former.predict.results import ResultFiles


def with_one_output(cfg: CfgNode, task: str = "auto", threshold: float | None = None) -> CfgNode:
    """A frozen copy of `cfg` that makes the output of one task alone.

    Args:
        task: "panoptic", "instance" or "semantic"; "auto" for the first of these that the config turns on.
        threshold: least score of segments in panoptic output; None for the config's.
    """
    cfg = cfg.clone()
    cfg.defrost()
    test = cfg.MODEL.MASK_FORMER.TEST
    wanted = task_of(cfg) if task == "auto" else task
    for name, key in SWITCHES.items():
        test[key] = name == wanted
    if threshold is not None:
        test.OBJECT_MASK_THRESHOLD = threshold
    cfg.freeze()
    return cfg


def predict_files(
    predictor: Predictor, images: Sequence[ImageFile], folder: Path, *, pictures: bool = True, results: bool = True
) -> list[ImageFile]:
    """Write pictures, and predictions in COCO's formats, of the one output that a model makes; with a progress bar.

    Args:
        predictor: for RGB images, see `with_one_output`.
        folder: made if missing; gets `NAME.png` for each image, and what `ResultFiles` writes, also when the run is
            interrupted: then of the images that were done.
        pictures, results: whether to write these.

    Returns:
        The images that could not be read; each was reported on standard error.
    """
    files = ResultFiles(folder, task_of(predictor.cfg), predictor.metadata)
    skipped: list[ImageFile] = []
    try:
        for file, name in tqdm(list(zip(images, output_names(images), strict=True)), unit="image"):
            try:
                picture = read_file(file)
            except (DataError, OSError) as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                skipped.append(file)
                continue
            output = predictor(picture.pixels)
            if pictures:
                write_bytes(folder / f"{name}.png", encode_png(output.draw()))
            if results:
                files.add(picture.name, name, output)
    finally:
        if results:
            files.write()
    return skipped
