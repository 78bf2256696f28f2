"""Write a model in the layout of transformers: config.json, preprocessor_config.json and model.safetensors.

`Mask2FormerForUniversalSegmentation.from_pretrained(OUTPUT_DIR)` reads it, and so does MODEL.WEIGHTS.

Example:
    python tools/convert_to_transformers.py configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml \\
        zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep output/mask2former-r50-coco-panoptic
"""

import argparse
from collections.abc import Sequence

from mask2former import get_cfg
from mask2former.checkpoint import load_weights, save_transformers
from mask2former.cli.arguments import add_import_option
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog
from mask2former.d2.modeling import build_model
from mask2former.data.datasets.metadata import dataset_metadata
from mask2former.engine.command import import_modules, run
from mask2former.engine.setup import load_cfg


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="config file of the model")
    parser.add_argument("weights", metavar="WEIGHTS", help="its weights: a path, an address, or zoo:// and a name")
    parser.add_argument("output", metavar="OUTPUT_DIR", help="folder to write; made if missing")
    add_import_option(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="pairs KEY VALUE that override the config file")
    args = parser.parse_args(arguments)
    import_modules(args.modules)
    cfg = load_cfg(get_cfg(), args.config, [*args.opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", args.weights])
    model = build_model(cfg)
    report = load_weights(model, args.weights, strict=True)
    categories = cfg.MODEL.CATEGORIES or report.categories
    names = [category["name"] for category in categories] or class_names(cfg)
    save_transformers(args.output, cfg, model.state_dict(), names)
    print(f"wrote {args.output}")


def class_names(cfg: CfgNode) -> list[str] | None:
    """Return the names of the model's classes, if the training set is known and has as many."""
    for name in cfg.DATASETS.TRAIN[:1]:
        if name not in DatasetCatalog:
            return None
        metadata = dataset_metadata(name)
        for key in ("stuff_classes", "thing_classes"):
            names = metadata.get(key)
            if names is not None and len(names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
                return list(names)
    return None


if __name__ == "__main__":
    run(main)
