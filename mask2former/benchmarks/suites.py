"""Running a suite, and what is written down of a run."""

from __future__ import annotations

import argparse
import os
import shlex
from datetime import datetime, timezone

import torch

from mask2former.benchmarks import criterion, inference, op, training
from mask2former.benchmarks.machine import describe_machine, describe_versions
from mask2former.benchmarks.results import Document, Row

SUITES = {module.NAME: module for module in (op, inference, training, criterion)}
QUICK_SIZE = (64, 96)
_ENVIRONMENT = ("OMP_NUM_THREADS", "MASK2FORMER_OPS", "KMP_AFFINITY", "LD_PRELOAD")


def measure(args: argparse.Namespace) -> Document:
    """Run the suite `args.suite` with the arguments of `mask2former benchmark`; returns what is written of it."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.threads = args.threads or torch.get_num_threads()
    if args.quick:
        args.rounds, args.warmup = 2, 1
        args.size = [QUICK_SIZE] if isinstance(args.size, list) else QUICK_SIZE
    torch.set_num_threads(args.threads)
    started = datetime.now(timezone.utc)
    rows: list[Row] = SUITES[args.suite].run(args)
    environment = [f"{key}={os.environ[key]}" for key in _ENVIRONMENT if key in os.environ]
    return {
        "command": " ".join([*environment, shlex.join(["mask2former", "benchmark", *args.words])]),
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
