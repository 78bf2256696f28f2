"""Score a trained model on the data sets of DATASETS.TEST.

Examples:
    mask2former eval --weights output/run1/model_final.pth --import my_data
    mask2former eval --weights output/run1/model_final.pth --import my_data DATASETS.TEST "('my_test',)"
    mask2former eval --weights zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --output output/r50
    mask2former eval --config-file my.yaml --weights old_model.pth

Without --config-file the config is the one that the checkpoint carries, or that of the model zoo. Results are logged,
and predictions are written to `inference/` in the output folder.
"""

import argparse

from .arguments import add_config_file_option, add_output_option, add_run_arguments, add_weights_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, and the arguments of training that evaluation shares."""
    add_weights_option(parser)
    parser.add_argument("--ema", action="store_true", help="score the running average of the weights (MODEL_EMA)")
    add_config_file_option(parser, default="")
    add_output_option(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate in as many processes as `args` says."""
    from mask2former.engine.main import launch_main

    args.eval_only, args.resume = True, False
    args.opts = [*args.opts, "MODEL.WEIGHTS", args.weights]
    if args.output:
        args.opts += ["OUTPUT_DIR", args.output]
    if args.ema:
        args.opts += ["MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY", "True"]
    launch_main(args)
