"""Segment images: write pictures, and predictions in COCO's formats beside them.

Examples:
    mask2former predict --weights output/run1/model_final.pth --input photo.jpg --output predictions
    mask2former predict --weights model.pth --input folder 'more/*.png' --output predictions --task instance
    mask2former predict --weights coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --input photo.jpg \\
        --output predictions MODEL.DEVICE cpu
    torchrun --nproc-per-node 8 -m mask2former predict --weights model.pth --input folder --output predictions
    mask2former predict --weights model.pth --input map.png --output predictions --tile 1024
    mask2former predict --weights model.pth --video drive.mp4 --output drawn.mp4
    mask2former predict --weights model.pth --webcam --show

The checkpoint says which model it belongs to and names the classes; no config file is needed, unless it was written by
an older version or another program. DIR receives NAME.png for each image, and for the task of the model panoptic.json
with panoptic/, instances.json, or semantic.json with semantic/. Every image that is done is noted in predictions.jsonl:
the same command goes on where a former one ended, whatever ended it. Images that cannot be read are reported and
skipped; the exit status is then 1. Of videos and cameras, frames with what was found in them are written or shown.
"""

import argparse
from typing import TYPE_CHECKING

from .arguments import (
    add_config_file_option,
    add_config_pairs,
    add_import_option,
    add_missing_weights_option,
    add_weights_option,
    positive_int,
)

if TYPE_CHECKING:
    from mask2former.d2.config import CfgNode
    from mask2former.predict.files import ImageFile
    from mask2former.predict.predictor import Predictor
    from mask2former.predict.run import Outcome

TASKS = ("panoptic", "instance", "semantic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the images, and what to write of them."""
    add_weights_option(parser)
    add_config_file_option(parser, default="")
    add_prediction_arguments(parser)


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """What the demo takes too."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders, quoted glob patterns, addresses")
    source.add_argument("--video", metavar="FILE", help="a video; with --output FILE.mp4, --show, or both")
    source.add_argument("--webcam", type=int, nargs="?", const=0, metavar="N", help="a camera, by default 0; likewise")
    parser.add_argument("--output", metavar="DIR", help="folder to write; of a video or camera, the video to write")
    parser.add_argument("--show", action="store_true", help="show frames of a video or camera in a window until q")
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
    parser.add_argument(
        "--ema", action="store_true", help="predict with the running average of the weights (MODEL_EMA)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=1,
        metavar="N",
        help="images of one size that run together (default: 1)",
    )
    parser.add_argument(
        "--tile",
        type=positive_int,
        metavar="N",
        help="cut larger images into tiles of N x N pixels, predict each like an image, and join what crosses seams",
    )
    parser.add_argument(
        "--stride",
        type=positive_int,
        metavar="N",
        help="pixels from one tile to the next (default: three quarters of a tile)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write the predictions alone")
    parser.add_argument("--overwrite", action="store_true", help="replace what DIR has, instead of going on with it")
    add_missing_weights_option(parser)
    add_import_option(parser)
    add_config_pairs(parser)


def run(args: argparse.Namespace) -> int:
    """Predict, and write pictures and results; returns 1 if images could not be read."""
    return predict(args, configure(args))


def configure(args: argparse.Namespace) -> "CfgNode":
    """The config of the model."""
    from mask2former.config import get_cfg
    from mask2former.engine.command import import_modules
    from mask2former.engine.setup import load_cfg
    from mask2former.predict.sources import source_config

    import_modules(args.modules)
    cfg = get_cfg() if args.config_file else source_config(args.weights)
    cfg.MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS = cfg.MODEL.MASK_FORMER.TEST.RUN_LENGTHS = True
    cfg = load_cfg(cfg, args.config_file, args.opts)
    if args.weights and args.config_file:
        cfg.defrost()
        cfg.MODEL.WEIGHTS = args.weights
    return cfg


def predict(args: argparse.Namespace, cfg: "CfgNode") -> int:
    """Predict on images, a video or a camera with the model of a config; returns 1 if images could not be read."""
    import logging

    from mask2former.engine.launch import launch
    from mask2former.predict.files import find_images
    from mask2former.predict.run import Outcome

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.input is None:
        return _predict_video(args, cfg)
    if not args.output or args.show:
        wrong = "--show is for --video and --webcam" if args.show else "--input needs --output DIR"
        raise argparse.ArgumentError(None, wrong)
    images = find_images(args.input)
    if not images:
        raise argparse.ArgumentError(None, f"no images in {' '.join(args.input)}")
    outcomes: list[Outcome] = []
    launch(lambda: outcomes.append(_predict(args, cfg, images)), 1)
    return 1 if outcomes[0].skipped else 0


def _predict(args: argparse.Namespace, cfg: "CfgNode", images: "list[ImageFile]") -> "Outcome":
    """Predict in this process, alone or with others."""
    from pathlib import Path

    from mask2former.d2 import comm
    from mask2former.predict.run import predict_files

    outcome = predict_files(
        _predictor(args, cfg),
        images,
        Path(args.output),
        pictures=not args.no_pictures,
        batch_size=args.batch_size,
        overwrite=args.overwrite,
    )
    if comm.is_main_process():
        before = f" ({outcome.before} from before)" if outcome.before else ""
        print(f"{outcome.predicted} predictions{before} in {args.output}, {len(outcome.skipped)} images skipped")
    return outcome


def _predict_video(args: argparse.Namespace, cfg: "CfgNode") -> int:
    from mask2former.predict.video import predict_video

    if not (args.output or args.show):
        raise argparse.ArgumentError(None, "a video or camera needs --output FILE.mp4, --show, or both")
    if args.no_pictures or args.overwrite:
        raise argparse.ArgumentError(None, "--no-pictures and --overwrite are for --input")
    source = args.webcam if args.video is None else args.video
    predictor = _predictor(args, cfg)
    count = predict_video(predictor, source, output=args.output, show=args.show, batch_size=args.batch_size)
    print(f"{count} frames" + (f" in {args.output}" if args.output else ""))
    return 0


def _predictor(args: argparse.Namespace, cfg: "CfgNode") -> "Predictor":
    from mask2former.predict.predictor import Predictor

    predictor = Predictor(
        cfg,
        task=args.task,
        threshold=args.confidence_threshold,
        tile=args.tile,
        stride=args.stride,
        input_format="RGB",
        ema=args.ema,
        allow_missing_weights=args.allow_missing_weights,
    )
    if args.confidence_threshold is None and not predictor.score_threshold:
        predictor.score_threshold = 0.5  # the checkpoint knows none
    return predictor
