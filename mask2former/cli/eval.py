"""Score a trained model on the data sets of DATASETS.TEST.

Examples:
    mask2former eval --config-file output/run1/config.yaml --weights output/run1/model_final.pth --import my_data
    mask2former eval --config-file my.yaml --weights model.pth --output output/evaluation
"""

import argparse

from .arguments import add_config_file_option, add_output_option, add_run_arguments, add_weights_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, and the arguments of training that evaluation shares."""
    add_weights_option(parser)
    parser.add_argument("--ema", action="store_true", help="score the running average of the weights (MODEL_EMA)")
    add_config_file_option(parser)
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
