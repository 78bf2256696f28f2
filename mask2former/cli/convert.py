"""Convert weights: a pretrained backbone to Detectron2's names, or a model to the layout of transformers.

Examples:
    mask2former convert backbone resnet101-63fe2227.pth R-101.pkl
    mask2former convert backbone swin_tiny_patch4_window7_224.pth swin_tiny_patch4_window7_224.pkl --kind swin
    mask2former convert transformers output/run1/model_final.pth output/transformers
    mask2former convert transformers zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep output/r50

MODEL.WEIGHTS reads all of these as they are, and what is written. `backbone` makes the files that published configs
name and prints what became of each part. `transformers` writes config.json, preprocessor_config.json and
model.safetensors, which `Mask2FormerForUniversalSegmentation.from_pretrained` reads.
"""

import argparse
from pathlib import Path

from .arguments import add_config_file_option, add_config_pairs, add_import_option

KINDS = ("torchvision", "caffe2", "swin", "timm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to convert to, and its own arguments."""
    targets = parser.add_subparsers(dest="target", required=True, metavar="TARGET")
    backbone = targets.add_parser("backbone", help="a pretrained ResNet or Swin, by Detectron2's names")
    backbone.add_argument("input", help="weights file: .pth, .pkl or .safetensors, a path or an address")
    backbone.add_argument("output", type=Path, help="file to write: .pkl (Detectron2's), .pth or .safetensors")
    backbone.add_argument("--kind", choices=["auto", *KINDS], default="auto", help="where the input is from")
    transformers = targets.add_parser("transformers", help="a model, as transformers reads it")
    add_config_file_option(transformers, default="")
    add_model_arguments(transformers)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights and a folder."""
    parser.add_argument("weights", metavar="WEIGHTS", help="its weights: a path, an address, or zoo:// and a name")
    parser.add_argument("output", metavar="OUTPUT_DIR", help="folder to write; made if missing")
    add_import_option(parser)
    add_config_pairs(parser)


def run(args: argparse.Namespace) -> None:
    """Convert to `args.target`."""
    (convert_pretrained if args.target == "backbone" else convert_to_transformers)(args)


def convert_pretrained(args: argparse.Namespace) -> None:
    """Write a backbone's weights by Detectron2's names."""
    from mask2former.checkpoint import CheckpointError, read_checkpoint, write_weights
    from mask2former.checkpoint.backbones import convert_backbone

    weights = read_checkpoint(args.input)["model"]
    try:
        converted = convert_backbone(weights, args.kind)
    except CheckpointError as error:
        raise CheckpointError(f"{args.input}: {error}") from None
    write_weights(args.output, converted.weights, author=converted.kind)
    print(converted.table())
    print(f"wrote {args.output}")


def convert_to_transformers(args: argparse.Namespace) -> None:
    """Write a model as transformers reads it."""
    from mask2former.checkpoint import checkpoint_config, load_weights, save_transformers
    from mask2former.config import get_cfg
    from mask2former.d2.modeling import build_model
    from mask2former.engine.command import import_modules
    from mask2former.engine.setup import load_cfg, with_categories

    import_modules(args.modules)
    cfg = get_cfg() if args.config_file else checkpoint_config(args.weights)
    opts = [*args.opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", args.weights]
    cfg = load_cfg(cfg, args.config_file, opts)
    model = build_model(cfg)
    report = load_weights(model, args.weights, strict=True)
    categories = cfg.MODEL.CATEGORIES or list(report.categories) or with_categories(cfg).MODEL.CATEGORIES
    cfg.defrost()
    cfg.MODEL.CATEGORIES = categories if len(categories) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES else []
    names = [category["name"] for category in cfg.MODEL.CATEGORIES]
    save_transformers(args.output, cfg, model.state_dict(), names or None)
    print(f"wrote {args.output}")
