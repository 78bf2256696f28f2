"""Evaluators: seconds per image, beside the model's forward pass on such an image.

Timed is `process` of each evaluator by itself, reading the ground truth included, on outputs of the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mask2former.d2.data import MetadataCatalog
from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.evaluation import EVALUATOR_REGISTRY
from tools.benchmarks.inference import predict
from tools.benchmarks.models import make_sure, model_cfg, our_model
from tools.benchmarks.pictures import pictures
from tools.benchmarks.results import Row
from tools.benchmarks.scenes import parse_size, random_image, size_name
from tools.benchmarks.timing import in_turn, ratios

NAME = "evaluator"
FORWARD = "forward"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this suite."""
    parser.add_argument("--model", default="R50", help="R50, Swin-T, or a name in the model zoo (%(default)s)")
    parser.add_argument("--size", type=parse_size, default=(480, 640), metavar="HxW", help="of the images")
    parser.add_argument("--images", type=int, default=2, help="that are scored in turn (%(default)s)")
    parser.add_argument("--instances", type=int, default=10, help="of the ground truth of an image (%(default)s)")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure."""
    size = args.size
    cfg = model_cfg(args.model, args.device, quick=args.quick, opts=args.opts)
    model: Any = our_model(cfg, args.seed)
    images = [random_image(size, i) for i in range(args.images)]
    make_sure(model, images[0])
    outputs = [predict(model, image, "fp32", "all")[0] for image in images]
    with pictures(args.images, size, args.instances) as data:
        build = EVALUATOR_REGISTRY.get(MetadataCatalog.get(data.name).evaluator_type)
        functions: dict[str, Callable[[], object]] = {FORWARD: partial(predict, model, images[0], "fp32", "all")}
        for evaluator in build(cfg, data.name, None):
            functions[type(evaluator).__name__] = partial(score, evaluator, data.dicts, outputs)
        samples = in_turn(
            functions,
            rounds=args.rounds,
            warmup=args.warmup,
            device=torch.device(args.device),
            title=f"evaluators {size_name(size)}",
        )
    rows = []
    for name, values in samples.items():
        seconds = values if name == FORWARD else [value / args.images for value in values]
        against = ratios(samples[FORWARD], seconds) if name != FORWARD else []
        case = {"model": args.model, "size": size_name(size), "part": name}
        rows.append(Row(suite=NAME, case=case, seconds=seconds, versus=FORWARD if against else None, ratios=against))
    return rows


def score(evaluator: DatasetEvaluator, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
    """Let an evaluator process images one after another, as `inference_on_dataset` does."""
    evaluator.reset()
    for given, output in zip(inputs, outputs, strict=True):
        evaluator.process([given], [output])
