"""List the published models; show, or download, one of them.

Examples:
    mask2former zoo
    mask2former zoo --task panoptic --dataset COCO --backbone swin
    mask2former zoo coco/panoptic-segmentation/maskformer2_R50_bs16_50ep
    mask2former zoo coco/panoptic-segmentation/maskformer2_R50_bs16_50ep --download

Metrics are those that the paper's authors published, in percent. The name of a model stands for its config in
`--config-file`, and after zoo:// for its weights in `--weights`.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mask2former.checkpoint.published import PublishedModel

TASKS = ("panoptic", "instance", "semantic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, or what the listed ones must have."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this model; default: list all")
    parser.add_argument("--task", choices=TASKS, help="list models of this task")
    parser.add_argument("--dataset", metavar="TEXT", help="list models of data sets with this in their name")
    parser.add_argument("--backbone", metavar="TEXT", help="list models whose backbone has this in its name")
    parser.add_argument("--download", action="store_true", help="fetch the weights of NAME, once, and say where")


def run(args: argparse.Namespace) -> None:
    """Print a table, or one model."""
    from mask2former.checkpoint.published import find_published

    if args.name is None and args.download:
        raise argparse.ArgumentError(None, "--download needs the NAME of a model")
    if args.name is None:
        print(_table(args))
        return
    name, model = find_published(args.name)
    print(_entry(name, model))
    if args.download:
        from mask2former.checkpoint import local_path

        print(f"file        {local_path(model.checkpoint)}")


def _table(args: argparse.Namespace) -> str:
    from tabulate import tabulate

    from mask2former.checkpoint.published import published_models

    rows = [
        (name, model.dataset, model.task, model.backbone, _metrics(model))
        for name, model in published_models().items()
        if args.task in (None, model.task)
        and (args.dataset or "").lower() in model.dataset.lower()
        and (args.backbone or "").lower() in model.backbone.lower()
    ]
    if not rows:
        raise ValueError("no published model is like that; `mask2former zoo` lists all")
    table = tabulate(rows, headers=["name", "data set", "task", "backbone", "published metrics"])
    return f"{table}\n{len(rows)} models"


def _entry(name: str, model: "PublishedModel") -> str:
    from mask2former.checkpoint.download import cached_file
    from mask2former.model_zoo import get_config, get_config_file

    cfg = get_config(name)
    file = cached_file(model.checkpoint)
    lines = {
        "name": name,
        "data set": f"{model.dataset}, {cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes",
        "task": model.task,
        "backbone": model.backbone,
        "schedule": model.schedule,
        "published": _metrics(model),
        "queries": cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
        "test size": f"short side {cfg.INPUT.MIN_SIZE_TEST}, long side at most {cfg.INPUT.MAX_SIZE_TEST}",
        "batch": f"{cfg.SOLVER.IMS_PER_BATCH} images, {cfg.SOLVER.MAX_ITER} iterations",
        "config": get_config_file(name),
        "weights": model.checkpoint,
        "downloaded": file or "no",
    }
    return "\n".join(f"{key:<11} {value}" for key, value in lines.items())


def _metrics(model: "PublishedModel") -> str:
    return ", ".join(f"{metric} {value}" for metric, value in model.metrics.items())
