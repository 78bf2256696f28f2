"""Data loading for training: images per second of a mapper alone, and of the loader with its workers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from mask2former.data.loader import build_train_loader, load_datasets
from mask2former.data.mappers import DATASET_MAPPER_REGISTRY, build_mapper
from tools.benchmarks.models import model_cfg
from tools.benchmarks.pictures import pictures
from tools.benchmarks.results import Row
from tools.benchmarks.scenes import parse_size, size_name
from tools.benchmarks.timing import in_turn

NAME = "loader"

Dicts = Sequence[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this suite."""
    mappers = sorted(name for name, _ in DATASET_MAPPER_REGISTRY)
    parser.add_argument("--mapper", nargs="+", choices=mappers, default=["coco_panoptic_lsj", "coco_instance_lsj"])
    parser.add_argument("--model", default="R50", help="whose config says how images are augmented (%(default)s)")
    parser.add_argument("--dataset", metavar="NAME", help="registered data set; without it, synthetic pictures")
    parser.add_argument("--size", type=parse_size, default=(480, 640), metavar="HxW", help="of synthetic pictures")
    parser.add_argument("--images", type=int, default=16, help="of a sample (%(default)s)")
    parser.add_argument("--instances", type=int, default=10, help="of a synthetic picture (%(default)s)")
    parser.add_argument("--workers", nargs="+", type=int, default=[2], help="of the loader")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure."""
    cfg = model_cfg(args.model, "cpu", opts=args.opts)
    cfg.SOLVER.IMS_PER_BATCH = 1
    if args.quick:
        cfg.INPUT.IMAGE_SIZE = 64
    functions: dict[tuple[str, str], Callable[[], object]] = {}
    with _dicts(args) as (source, dicts):
        for mapper_name in args.mapper:
            cfg.INPUT.DATASET_MAPPER_NAME = mapper_name
            mapper = build_mapper(cfg, True)
            functions[mapper_name, "mapper alone"] = partial(_map_all, mapper, dicts)
            for workers in args.workers:
                cfg.DATALOADER.NUM_WORKERS = workers
                loader = iter(build_train_loader(cfg, dataset=dicts, mapper=mapper))
                take = partial(_take, loader, len(dicts))
                functions[mapper_name, f"loader, {workers} workers"] = take
        samples = _measure(functions, args)
    rows = []
    for (mapper_name, part), values in samples.items():
        seconds = [value / len(dicts) for value in values]
        case = {"images": source, "mapper": mapper_name, "part": part}
        rows.append(Row(suite=NAME, case=case, seconds=seconds, figures={"images/s": 1 / median(seconds)}))
    return rows


@contextmanager
def _dicts(args: argparse.Namespace) -> Iterator[tuple[str, Dicts]]:
    if args.dataset:
        yield args.dataset, load_datasets([args.dataset], filter_empty=True)[: args.images]
        return
    with pictures(args.images, args.size, args.instances) as data:
        yield f"synthetic {size_name(args.size)}, {args.instances} instances", data.dicts


def _measure(
    functions: dict[tuple[str, str], Callable[[], object]], args: argparse.Namespace
) -> dict[tuple[str, str], list[float]]:
    """Measure one after another, not in turn: workers of a loader would go on in the background."""
    samples = {}
    for key, function in functions.items():
        measured = in_turn(
            {"": function},
            rounds=args.rounds,
            warmup=args.warmup,
            device=torch.device("cpu"),
            title=", ".join(key),
            repeat_short=False,
        )
        samples[key] = measured[""]
    return samples


def _map_all(mapper: Callable[[dict[str, Any]], object], dicts: Dicts) -> None:
    for record in dicts:
        mapper(record)


def _take(batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(batches)
