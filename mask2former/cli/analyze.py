"""Count parameters, FLOPs and activations of a model, and time it, at one size or over images of a data set.

Examples:
    mask2former analyze --model coco/panoptic-segmentation/maskformer2_R50_bs16_50ep
    mask2former analyze --config-file FILE --tasks flop time --size 800 1088
    mask2former analyze --model NAME --tasks flop --dataset coco_2017_val_panoptic --num-inputs 100 MODEL.DEVICE cpu

One FLOP is one multiply-add, as fvcore counts and papers of this field report. All of a forward pass counts, from
the normalisation of the image to the segmentations. Weights are random; no count depends on them.
"""

import argparse

from .arguments import add_config_pairs, add_import_option

TASKS = ("parameter", "flop", "activation", "time", "structure")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, what to count, and the images to count on."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="config of the model")
    model.add_argument("--model", metavar="NAME", help="name in the model zoo")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["parameter", "flop"])
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), default=[800, 1088], help="of a random image")
    images.add_argument("--dataset", metavar="NAME", help="registered data set; its images, as the config resizes them")
    parser.add_argument("--num-inputs", type=int, default=100, metavar="N", help="images of the data set; default 100")
    add_import_option(parser)
    add_config_pairs(parser)


def run(args: argparse.Namespace) -> None:
    """Print a report for each task."""
    from mask2former import analysis
    from mask2former.config import get_cfg
    from mask2former.d2.modeling import build_model
    from mask2former.engine.command import import_modules
    from mask2former.engine.setup import load_cfg
    from mask2former.model_zoo import get_config_file

    import_modules(args.modules)
    cfg = load_cfg(get_cfg(), args.config_file or str(get_config_file(args.model)), args.opts)
    model = build_model(cfg).eval()
    if "structure" in args.tasks:
        print(model)
    if "parameter" in args.tasks:
        print(analysis.report_parameters(model))
    measures = {"flop": analysis.report_flops, "activation": analysis.report_activations, "time": analysis.report_time}
    for task, report in measures.items():
        if task in args.tasks:
            if args.dataset is None:
                print(report(model, [analysis.random_inputs(args.size)]))
            else:
                print(report(model, analysis.dataset_inputs(cfg, args.dataset, args.num_inputs)))
