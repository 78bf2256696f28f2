"""Train the model of a config file.

Examples:
    mask2former train --config-file my.yaml --output output/run1
    mask2former train --config-file coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --num-gpus 8
    mask2former train --config-file my.yaml --import my_data SOLVER.IMS_PER_BATCH 4
    mask2former train --config-file my.yaml --output output/run1 --resume
    torchrun --nproc-per-node 2 -m mask2former train --config-file my.yaml
"""

import argparse

from .arguments import add_output_option, add_training_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `tools/train_net.py`, and `--output`."""
    add_output_option(parser)
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Train, or evaluate with `--eval-only`, in as many processes as `args` says."""
    from mask2former.engine.main import launch_main

    if args.output:
        args.opts = [*args.opts, "OUTPUT_DIR", args.output]
    launch_main(args)
