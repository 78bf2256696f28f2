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
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
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


def needs_library(args: argparse.Namespace) -> bool:
    """The list comes from a table; about one model the library knows more."""
    return args.name is not None


def run(args: argparse.Namespace) -> None:
    """Print a table, or one model."""
    if args.name is None and args.download:
        raise argparse.ArgumentError(None, "--download needs the NAME of a model")
    if args.name is None:
        print(_table(args))
        return
    from mask2former.checkpoint.published import find_published

    name, model = find_published(args.name)
    print(_entry(name, model))
    if args.download:
        from mask2former.checkpoint import local_path

        print(f"file        {local_path(model.checkpoint)}")


def _table(args: argparse.Namespace) -> str:
    from tabulate import tabulate

    rows = [
        (name, model.dataset, model.task, model.backbone, _metrics(model))
        for name, model in _published_models().items()
        if args.task in (None, model.task)
        and (args.dataset or "").lower() in model.dataset.lower()
        and (args.backbone or "").lower() in model.backbone.lower()
    ]
    if not rows:
        raise ValueError("no published model is like that; `mask2former zoo` lists all")
    table = tabulate(rows, headers=["name", "data set", "task", "backbone", "published metrics"])
    return f"{table}\n{len(rows)} models"


def _published_models() -> "dict[str, PublishedModel]":
    """The table, from its module's file: importing that by its name takes the whole library, and seconds."""
    name = "mask2former_cli.published"
    if name not in sys.modules:
        spec = spec_from_file_location(name, Path(__file__).parents[1] / "checkpoint" / "published.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    models: dict[str, PublishedModel] = sys.modules[name].published_models()
    return models


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
