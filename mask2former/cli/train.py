"""Train on your own data, or the model of a config file.

Examples:
    mask2former train --data photos/ --dry-run
    mask2former train --data photos/ --model swin_t --epochs 50 --output output/run1
    mask2former train --data output/run1/data.yaml --weights output/run1/model_final.pth SOLVER.BASE_LR 0.00001
    mask2former train --data photos/ --data drawings/:0.3
    mask2former train --config-file my.yaml --output output/run1
    mask2former train --config-file coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --num-gpus 8
    mask2former train --config-file my.yaml --import my_data SOLVER.IMS_PER_BATCH 4
    mask2former train --config-file my.yaml --output output/run1 --resume
    torchrun --nproc-per-node 2 -m mask2former train --config-file my.yaml

With --data the settings follow from the data. They are shown with their reasons, and written to config.yaml in the
output folder; data.yaml beside it says how the data were understood.
"""

import argparse

from .arguments import add_output_option, add_training_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `tools/train_net.py`, `--output`, and those of own data."""
    data = parser.add_argument_group("own data")
    data.add_argument(
        "--data",
        action="append",
        metavar="PATH[:RATIO]",
        help="folder or file of your data, or a data.yaml that describes them; may be given several times, each with "
        "how many of its images come for those of the others",
    )
    data.add_argument(
        "--task",
        default="auto",
        choices=("auto", "instance", "panoptic", "semantic"),
        help="what to learn (%(default)s)",
    )
    data.add_argument(
        "--model", default="", metavar="NAME", help="such as swin_t or r50, a name in the model zoo, or a config file"
    )
    start = data.add_mutually_exclusive_group()
    start.add_argument(
        "--weights", default="", metavar="FILE", help="weights to start from (the model's published ones)"
    )
    start.add_argument("--from-scratch", action="store_true", help="start from random weights")
    data.add_argument("--epochs", type=float, metavar="N", help="how often each image is seen")
    data.add_argument("--dry-run", action="store_true", help="show and write data and settings, and stop")
    add_output_option(parser)
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Train, or evaluate with `--eval-only`, in as many processes as `args` says."""
    from mask2former.engine.main import launch_main

    if args.data:
        if not _prepare(args):
            return
    else:
        _refuse_data_options(args)
    if args.output:
        args.opts = [*args.opts, "OUTPUT_DIR", args.output]
    launch_main(args)


def _prepare(args: argparse.Namespace) -> bool:
    """From `--data` to the config file of the run; returns whether to train on it."""
    import os
    from pathlib import Path

    import torch

    from mask2former.engine.command import import_modules
    from mask2former.engine.model_choice import check_weights
    from mask2former.engine.own_data import CONFIG_FILE, OUTPUT, Request, plan

    pairs = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    output = args.output or dict(zip(pairs[::2], pairs[1::2], strict=False)).get("OUTPUT_DIR", OUTPUT)
    written = Path(output, CONFIG_FILE)
    if args.config_file:
        raise argparse.ArgumentError(None, "--data and --config-file are two ways; with --data, --model takes a file")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise argparse.ArgumentError(
            None,
            f"under torchrun, prepare first with --dry-run in one process, then train with --config-file {written}",
        )
    if args.resume and written.is_file():
        args.config_file = str(written)
        return True
    import_modules(args.modules)
    request = Request(
        data=args.data,
        task=args.task,
        model=args.model,
        weights=args.weights,
        from_scratch=args.from_scratch,
        epochs=args.epochs,
        output=output,
        opts=pairs,
        processes=(max(1, args.num_gpus) if torch.cuda.is_available() else 1) * args.num_machines,
        modules=args.modules,
    )
    made = plan(request)
    print(made.table())
    if made.cfg.MODEL.WEIGHTS and not args.dry_run:
        check_weights(made.cfg.MODEL.WEIGHTS)
    args.config_file = str(made.write())
    end = ". This was a dry run: nothing is trained" if args.dry_run else ""
    print(f"\nWritten to {args.config_file}, and the data to data.yaml beside it{end}.\n")
    return not args.dry_run


def _refuse_data_options(args: argparse.Namespace) -> None:
    defaults = {"task": "auto", "model": "", "weights": "", "from_scratch": False, "epochs": None, "dry_run": False}
    for name, default in defaults.items():
        if getattr(args, name) != default:
            option = name.replace("_", "-")
            raise argparse.ArgumentError(None, f"--{option} goes with --data; a --config-file says it by itself")
