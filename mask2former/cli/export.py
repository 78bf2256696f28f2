"""Write a model as a file for another runtime, run the file, and compare it with PyTorch.

Examples:
    mask2former export --weights output/run1/model_final.pth --format onnx --output model.onnx
    mask2former export --weights zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --format onnx \\
        --output r50.onnx --size 800x1344 --batch 1

The file takes `images`, uint8 (batch, 3, height, width), and gives the logits of classes and masks. It is run at two
sizes and numbers of images; if a number differs from PyTorch by more than the tolerance, nothing is written and the
exit status is 1.
"""

import argparse
from typing import Any

from .arguments import (
    add_config_file_option,
    add_config_pairs,
    add_import_option,
    add_weights_option,
    parse_size,
    positive_int,
)

FORMATS = ("onnx", "pt2", "openvino", "tensorrt-onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, the file, and what varies in its input."""
    add_weights_option(parser)
    add_config_file_option(parser, default="")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="file to write: .onnx, .pt2, or .xml for openvino"
    )
    parser.add_argument(
        "--postprocess", action="store_true", help="let the graph also make the outputs that the config turns on"
    )
    parser.add_argument(
        "--size", type=parse_size, metavar="HEIGHTxWIDTH", help="of all images that will come (default: any size)"
    )
    parser.add_argument("--batch", type=positive_int, metavar="N", help="images at a time (default: any number)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        metavar="T",
        help="largest difference to PyTorch, as a share of an output's largest number (default: %(default)s)",
    )
    add_import_option(parser)
    add_config_pairs(parser)


def run(args: argparse.Namespace) -> None:
    """Write the file, and say how far it differs."""
    from mask2former.config import get_cfg
    from mask2former.data.datasets.metadata import categories_of
    from mask2former.engine.command import import_modules
    from mask2former.engine.setup import load_cfg
    from mask2former.export import export_model
    from mask2former.predict.sources import load, source_config

    import_modules(args.modules)
    cfg = get_cfg() if args.config_file else source_config(args.weights)
    weights = args.weights if args.config_file else cfg.MODEL.WEIGHTS
    fixed = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights, "MODEL.COMPILE", "False"]
    cfg = load_cfg(cfg, args.config_file, [*args.opts, *fixed])
    loaded = load(cfg)
    model: Any = loaded.segmenter
    comparison = export_model(
        model,
        cfg,
        args.output,
        format=args.format,
        categories=categories_of(loaded.metadata),
        score_thresholds=loaded.score_thresholds,
        postprocess=args.postprocess,
        size=args.size,
        batch=args.batch,
        tolerance=args.tolerance,
    )
    if comparison.differences:
        print(f"largest difference to PyTorch, by images x height x width:\n{comparison.text()}")
    else:
        print("the graph is as TensorRT wants it; what TensorRT computes has not been compared")
    print(f"wrote {args.output}")
