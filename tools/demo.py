"""Segment images and write them with coloured overlays, class names and scores.

Examples:
    python tools/demo.py --config-file FILE --weights W --input a.jpg b.jpg --output overlays
    python tools/demo.py --config-file FILE --weights W --input folder 'more/*.png' --output overlays
    python tools/demo.py --config-file FILE --weights W --task instance --confidence-threshold 0.7 \\
        --input folder --output overlays MODEL.DEVICE cpu

FILE is a config, such as `config.yaml` in the folder of a training run, which also names the classes. Images that
cannot be read are reported and skipped; the exit status is then 1.
"""

import argparse
import glob
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
from tqdm import tqdm

from mask2former import get_cfg
from mask2former.cli.arguments import add_import_option
from mask2former.d2.config import CfgNode
from mask2former.data.images import DataError, read_image
from mask2former.engine.command import import_modules, run
from mask2former.engine.predictor import Predictor
from mask2former.engine.setup import load_cfg
from mask2former.files import write_bytes

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
OUTPUT_KEYS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}  # best first


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
    parser.add_argument("--input", required=True, nargs="+", help="images, folders, or quoted glob patterns")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the overlays")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS of the config")
    parser.add_argument(
        "--task",
        choices=["auto", *OUTPUT_KEYS],
        default="auto",
        help="what to draw; auto: the first of panoptic, instance, semantic that the config turns on",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="least score of what is drawn (default: 0.5 for instances, the config's for panoptic)",
    )
    parser.add_argument(
        "--allow-missing-weights",
        action="store_true",
        help="predict with random weights where some are missing",
    )
    add_import_option(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="pairs KEY VALUE that override the config")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    import_modules(args.modules)
    cfg = configure(args)
    if not (cfg.MODEL.WEIGHTS or args.allow_missing_weights):
        parser.error("no weights: give --weights FILE")
    images = find_images(args.input)
    if not images:
        parser.error(f"no images in {' '.join(args.input)}")
    threshold = 0.5 if args.confidence_threshold is None else args.confidence_threshold
    predictor = Predictor(
        cfg, score_threshold=threshold, input_format="RGB", allow_missing_weights=args.allow_missing_weights
    )
    skipped = []
    for path, target in tqdm(list(zip(images, output_paths(images, Path(args.output)), strict=True)), unit="image"):
        try:
            image = read_image(path)
        except (DataError, OSError) as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            skipped.append(path)
            continue
        overlay = predictor.draw(image, predictor(image))
        _, png = cv2.imencode(".png", overlay[:, :, ::-1])
        write_bytes(target, png.tobytes())
    print(f"{len(images) - len(skipped)} overlays in {args.output}, {len(skipped)} images skipped")
    return 1 if skipped else 0


def configure(args: argparse.Namespace) -> CfgNode:
    """The config with only the output turned on that will be drawn."""
    cfg = load_cfg(get_cfg(), args.config_file, args.opts).clone()
    cfg.defrost()
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    test = cfg.MODEL.MASK_FORMER.TEST
    enabled = {task: f"{task.upper()}_ON" for task in OUTPUT_KEYS}
    task = args.task
    if task == "auto":
        task = next((name for name, key in enabled.items() if test[key]), "semantic")
    for name, key in enabled.items():
        test[key] = name == task
    if args.confidence_threshold is not None:
        test.OBJECT_MASK_THRESHOLD = args.confidence_threshold
    cfg.freeze()
    return cfg


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Image files named by paths, folders and glob patterns; a missing path is kept, to be reported."""
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists() or not glob.has_magic(text):
            found.append(path)
        else:
            found += sorted(Path(match) for match in glob.glob(text, recursive=True))
    return list(dict.fromkeys(found))


def output_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """A PNG in the folder for each image, numbered where two images have the same name."""
    targets: list[Path] = []
    for image in images:
        target, number = folder / f"{image.stem}.png", 2
        while target in targets:
            target, number = folder / f"{image.stem}_{number}.png", number + 1
        targets.append(target)
    return targets


if __name__ == "__main__":
    run(main)
