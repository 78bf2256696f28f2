"""Segment images: write pictures, with class names and scores, and predictions in COCO's formats beside them.

Examples:
    python tools/demo.py --config-file FILE --weights W --input a.jpg b.jpg --output predictions
    python tools/demo.py --config-file FILE --weights W --input folder 'more/*.png' --output predictions
    python tools/demo.py --config-file FILE --weights W --task instance --confidence-threshold 0.7 \\
        --input folder --output predictions MODEL.DEVICE cpu

FILE is a config, such as `config.yaml` in the folder of a training run, which also names the classes. The rest is as
with `mask2former predict`, which needs no FILE.
"""

import argparse
from collections.abc import Sequence

from mask2former.cli.arguments import add_config_file_option, described_parser
from mask2former.cli.predict import add_prediction_arguments, configure, predict
from mask2former.engine.command import run


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = described_parser(__doc__)
    add_config_file_option(parser, required=True)
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS of the config")
    add_prediction_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    cfg = configure(args)
    if not (cfg.MODEL.WEIGHTS or args.allow_missing_weights):
        parser.error("no weights: give --weights FILE")
    try:
        return predict(args, cfg)
    except argparse.ArgumentError as error:
        parser.error(str(error))


if __name__ == "__main__":
    run(main)
