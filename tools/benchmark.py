"""Measure speed and memory: the op, inference, training and criterion.

    python tools/benchmark.py op --json op.json
    python tools/benchmark.py inference --model Swin-T R50 --against transformers --stages --json inference.json
    python tools/benchmark.py train --against transformers --json train.json
    python tools/benchmark.py report docs/benchmarks/*.json      # fills the tables of docs/benchmarks.md

What is compared takes turns in one process, A B A B ...; a ratio is how many times as long the other took in the same
round, given as median (minimum to maximum). Weights are random and the same in what is compared; nothing is
downloaded. docs/benchmarks.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tools are a package of the checkout, also when the library is installed elsewhere

from mask2former.cli.arguments import add_import_option  # noqa: E402
from mask2former.engine.command import import_modules  # noqa: E402
from tools.benchmarks import criterion, inference, op, report, training  # noqa: E402
from tools.benchmarks.machine import describe_machine, describe_versions  # noqa: E402
from tools.benchmarks.results import Document, Row, write_document  # noqa: E402

SUITES = {module.NAME: module for module in (op, inference, training, criterion)}
QUICK_SIZE = (64, 96)
_ENVIRONMENT = ("OMP_NUM_THREADS", "MASK2FORMER_OPS", "KMP_AFFINITY", "LD_PRELOAD")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name, module in SUITES.items():
        command = _add_command(commands, name, module.__doc__)
        _add_shared_arguments(command)
        module.add_arguments(command)
    report.add_arguments(_add_command(commands, report.NAME, report.__doc__))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite, print its table and write its file; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    try:
        if args.suite == report.NAME:
            return report.run(args)
        import_modules(args.modules)
        if args.quick:
            args.rounds, args.warmup = 2, 1
            args.size = [QUICK_SIZE] if isinstance(args.size, list) else QUICK_SIZE
        torch.set_num_threads(args.threads)
        started = datetime.now(timezone.utc)
        rows = SUITES[args.suite].run(args)
        document = make_document(args, argv, started, rows)
        print(report.describe_run(document), *report.tables(document["rows"]).values(), sep="\n\n")
        if args.json:
            write_document(args.json, document)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    return 0


def make_document(args: argparse.Namespace, argv: Sequence[str], started: datetime, rows: Sequence[Row]) -> Document:
    """Return what is written for a run."""
    environment = [f"{key}={os.environ[key]}" for key in _ENVIRONMENT if key in os.environ]
    return {
        "command": " ".join([*environment, shlex.join(["python", "tools/benchmark.py", *argv])]),
        "date": started.isoformat(timespec="seconds"),
        "machine": describe_machine(torch.device(args.device)),
        "versions": describe_versions(),
        "settings": {
            "device": args.device,
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "warmup": args.warmup,
            "load before": round(os.getloadavg()[0], 1),
            "quick": args.quick,
        },
        "rows": [row.to_json() for row in rows],
    }


def _add_command(commands: Any, name: str, text: str | None) -> argparse.ArgumentParser:
    lines = (text or "").strip()
    return commands.add_parser(
        name,
        help=lines.splitlines()[0],
        description=lines,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    add_import_option(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each number (%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="calls that do not count, before (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny models and sizes: tells that it runs, no more")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="pairs that override the config")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples, machine, versions and command")


if __name__ == "__main__":
    sys.exit(main())
