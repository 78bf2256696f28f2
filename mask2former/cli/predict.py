"""Segment images: write pictures, and predictions in COCO's formats beside them.

Examples:
    mask2former predict --weights output/run1/model_final.pth --input photo.jpg --output predictions
    mask2former predict --weights model.pth --input folder 'more/*.png' --output predictions --task instance
    mask2former predict --weights coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --input photo.jpg \\
        --output predictions MODEL.DEVICE cpu
    torchrun --nproc-per-node 8 -m mask2former predict --weights model.pth --input folder --output predictions

The checkpoint says which model it belongs to and names the classes; no config file is needed, unless it was written by
an older version or another program. DIR receives NAME.png for each image, and for the task of the model panoptic.json
with panoptic/, instances.json, or semantic.json with semantic/. Every image that is done is noted in predictions.jsonl:
the same command goes on where a former one ended, whatever ended it. Images that cannot be read are reported and
skipped; the exit status is then 1.
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
    from mask2former.predict.run import Outcome

TASKS = ("panoptic", "instance", "semantic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the images, and what to write of them."""
    add_weights_option(parser)
    add_config_file_option(parser, default="")
    add_prediction_arguments(parser)


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """What the demo takes too."""
    parser.add_argument("--input", required=True, nargs="+", help="images, folders, quoted glob patterns, addresses")
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
    cfg.MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS = True
    cfg = load_cfg(cfg, args.config_file, args.opts)
    if args.weights and args.config_file:
        cfg.defrost()
        cfg.MODEL.WEIGHTS = args.weights
    return cfg


def predict(args: argparse.Namespace, cfg: "CfgNode") -> int:
    """Predict on `args.input` with the model of a config; returns 1 if images could not be read."""
    import logging

    from mask2former.engine.launch import launch
    from mask2former.predict.files import find_images
    from mask2former.predict.run import Outcome

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
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
    from mask2former.predict.predictor import Predictor
    from mask2former.predict.run import predict_files

    predictor = Predictor(
        cfg,
        task=args.task,
        threshold=args.confidence_threshold,
        ema=args.ema,
        allow_missing_weights=args.allow_missing_weights,
    )
    if args.confidence_threshold is None and not predictor.score_threshold:
        predictor.score_threshold = 0.5  # the checkpoint knows none
    outcome = predict_files(
        predictor,
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
