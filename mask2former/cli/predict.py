"""Segment images: write pictures, and predictions in COCO's formats beside them.

Examples:
    mask2former predict --weights output/run1/model_final.pth --input photo.jpg --output predictions
    mask2former predict --weights model.pth --input folder 'more/*.png' --output predictions --task instance
    mask2former predict --weights zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --input photo.jpg \\
        --output predictions MODEL.DEVICE cpu

The checkpoint says which model it belongs to and names the classes; no config file is needed, unless it was written by
an older version or another program. DIR receives NAME.png for each image, and for the task of the model panoptic.json
with panoptic/, instances.json, or semantic.json with semantic/. Images that cannot be read are reported and skipped;
the exit status is then 1.
"""

import argparse
from typing import TYPE_CHECKING

from .arguments import (
    add_config_file_option,
    add_config_pairs,
    add_import_option,
    add_missing_weights_option,
    add_weights_option,
)

if TYPE_CHECKING:
    from mask2former.d2.config import CfgNode

TASKS = ("panoptic", "instance", "semantic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the images, and what to write of them."""
    add_weights_option(parser)
    add_config_file_option(parser, default="")
    add_prediction_arguments(parser)
    parser.add_argument("--no-pictures", action="store_true", help="write the predictions alone")


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """What the demo takes too."""
    parser.add_argument("--input", required=True, nargs="+", help="images, folders, or quoted glob patterns")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--task",
        choices=["auto", *TASKS],
        default="auto",
        help="which output; auto: the first of panoptic, instance, semantic that the config turns on",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="least score of what is shown (default: of instances what the checkpoint found best for each class, "
        "else 0.5; of panoptic segments the config's)",
    )
    add_missing_weights_option(parser)
    add_import_option(parser)
    add_config_pairs(parser)


def run(args: argparse.Namespace) -> int:
    """Predict, and write pictures and results; returns 1 if images could not be read."""
    return predict(args, configure(args), pictures=not args.no_pictures, results=True)


def configure(args: argparse.Namespace) -> "CfgNode":
    """The config, with the one output turned on that will be written."""
    from mask2former.checkpoint import checkpoint_config
    from mask2former.config import get_cfg
    from mask2former.engine.command import import_modules
    from mask2former.engine.setup import load_cfg
    from mask2former.predict.run import with_one_output

    import_modules(args.modules)
    cfg = get_cfg() if args.config_file else checkpoint_config(args.weights)
    cfg = load_cfg(cfg, args.config_file, args.opts)
    if args.weights:
        cfg.defrost()
        cfg.MODEL.WEIGHTS = args.weights
    return with_one_output(cfg, args.task, args.confidence_threshold)


def predict(args: argparse.Namespace, cfg: "CfgNode", *, pictures: bool, results: bool) -> int:
    """Predict on `args.input` with the model of a config; returns 1 if images could not be read."""
    import logging
    from pathlib import Path

    from mask2former.predict.files import find_images
    from mask2former.predict.predictor import Predictor
    from mask2former.predict.run import predict_files

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    images = find_images(args.input)
    if not images:
        raise argparse.ArgumentError(None, f"no images in {' '.join(args.input)}")
    predictor = Predictor(
        cfg,
        score_threshold=args.confidence_threshold,
        input_format="RGB",
        allow_missing_weights=args.allow_missing_weights,
    )
    if args.confidence_threshold is None and not predictor.score_threshold:
        predictor.score_threshold = 0.5  # the checkpoint knows none
    skipped = predict_files(predictor, images, Path(args.output), pictures=pictures, results=results)
    what = "overlays" if not results else "predictions"
    print(f"{len(images) - len(skipped)} {what} in {args.output}, {len(skipped)} images skipped")
    return 1 if skipped else 0
