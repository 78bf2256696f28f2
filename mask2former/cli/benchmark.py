"""Measure speed and memory: the op, inference, training and criterion.

    mask2former benchmark op --json op.json
    mask2former benchmark inference --model Swin-T R50 --against transformers --stages --json inference.json
    mask2former benchmark train --against transformers --json train.json
    mask2former benchmark report docs/benchmarks/*.json      # fills the tables of docs/benchmarks.md

What is compared takes turns in one process, A B A B ...; a ratio is how many times as long the other took in the same
round, given as median (minimum to maximum). Weights are random and the same in what is compared; nothing is
downloaded. docs/benchmarks.md says what the numbers mean.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arguments import add_import_option, parse_size

DTYPES = ("fp32", "bf16", "fp16")
TASKS = ("panoptic", "semantic", "instance")
BACKENDS = ("compiled", "triton")
MEASURES = ("time", "memory", "syncs")
REPORT = "report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A suite, and its own arguments."""
    commands = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name, (text, add) in _SUITES.items():
        suite = commands.add_parser(name, help=text.partition(":")[0].rstrip("."), description=text)
        add(suite)
        if name != REPORT:
            _add_shared_arguments(suite)


def run(args: argparse.Namespace) -> None:
    """Run a suite, print its table and write its file."""
    from mask2former.benchmarks import report
    from mask2former.benchmarks.results import write_document
    from mask2former.benchmarks.suites import measure
    from mask2former.engine.command import import_modules

    if args.suite == REPORT:
        report.fill(args.output, args.files)
        return
    import_modules(args.modules)
    document = measure(args)
    print(report.describe_run(document), *report.tables(document["rows"]).values(), sep="\n\n")
    if args.json:
        write_document(args.json, document)


def _add_op(parser: argparse.ArgumentParser) -> None:
    _add_sizes(parser, "of the image", (512, 512), (800, 1333), (1024, 1024))
    parser.add_argument("--batch", type=int, default=1, help="images (%(default)s); on a GPU take more than its cache")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--backend", choices=BACKENDS, help="beside the reference; default: the first that works")


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", default=["Swin-T", "R50"], help="R50, Swin-T, or names in the model zoo")
    _add_sizes(parser, "of the image", (512, 512))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"], help="by autocast, but for fp32")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "all"], default=["panoptic", "all"])
    parser.add_argument("--against", choices=["transformers"], help="with the same weights, in turn")
    parser.add_argument(
        "--their-dtype", nargs="+", choices=DTYPES, default=["fp32"], help="of what it is compared with"
    )
    parser.add_argument("--stages", action="store_true", help="time the stages too, in rounds of their own")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too, each in a process of its own")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", default=["Swin-T"], help="R50, Swin-T, or names in the model zoo")
    _add_sizes(parser, "of the images", (384, 384))
    parser.add_argument("--batch", type=int, default=2, help="images of a step (%(default)s)")
    parser.add_argument("--instances", type=int, default=10, help="of each image (%(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"], help="by autocast, but for fp32")
    parser.add_argument("--against", choices=["transformers"], help="with the same weights, in turn")
    parser.add_argument(
        "--measure",
        nargs="+",
        choices=MEASURES,
        default=["time", "memory"],
        help="memory: the peak, each in a process of its own; syncs: waits for the GPU, as the profiler sees them",
    )


def _add_criterion(parser: argparse.ArgumentParser) -> None:
    _add_sizes(parser, "of the images", (384, 384))
    parser.add_argument("--batch", type=int, default=2, help="images (%(default)s)")
    parser.add_argument("--instances", type=int, default=10, help="of each image (%(default)s)")
    parser.add_argument(
        "--predictions", type=int, default=10, help="of each image, auxiliary ones counted (%(default)s)"
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON files of runs")
    target = Path("docs", "benchmarks.md")
    parser.add_argument("--output", type=Path, default=target, metavar="FILE", help="document (%(default)s)")


_SUITES: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "op": (
        "The deformable attention op: time of the backends, and how close it comes to the machine's copy bandwidth.",
        _add_op,
    ),
    "inference": (
        "Inference: an image in, segmentations out; per stage; beside transformers' model alone.",
        _add_inference,
    ),
    "train": (
        "A training step: forward, loss and backward; without the optimiser, which is PyTorch's everywhere.",
        _add_train,
    ),
    "criterion": (
        "Matching and losses: all predictions at once, against a loop over predictions and images.",
        _add_criterion,
    ),
    REPORT: ("Fill the tables of docs/benchmarks.md from the files that runs wrote with --json.", _add_report),
}


def _add_sizes(parser: argparse.ArgumentParser, what: str, *sizes: tuple[int, int]) -> None:
    parser.add_argument("--size", nargs="+", type=parse_size, default=list(sizes), metavar="HxW", help=what)


def _add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    add_import_option(parser)
    options: dict[str, Any] = {
        "--device": {"help": "cuda if there is a GPU, else cpu"},
        "--threads": {"type": int, "help": "of PyTorch; its own choice by default"},
        "--rounds": {"type": int, "default": 7, "help": "samples of each number (%(default)s)"},
        "--warmup": {"type": int, "default": 1, "help": "calls that do not count, before (%(default)s)"},
        "--seed": {"type": int, "default": 0, "help": "of weights and inputs (%(default)s)"},
        "--quick": {"action": "store_true", "help": "tiny models and sizes: tells that it runs, no more"},
        "--opts": {"nargs": "+", "default": [], "metavar": "KEY VALUE", "help": "pairs that override the config"},
        "--json": {"type": Path, "metavar": "FILE", "help": "write all samples, machine, versions and command"},
    }
    for name, settings in options.items():
        parser.add_argument(name, **settings)
