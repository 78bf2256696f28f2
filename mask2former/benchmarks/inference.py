"""Inference: an image in, segmentations out; per stage; beside transformers' model alone.

Timed of ours is all of `model([{"image": ...}])`: normalisation, the network and post-processing to full resolution.
Timed of transformers is the model's forward pass on an image that is normalised already; no post-processing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.analysis import count_flops
from mask2former.benchmarks.machine import PRODUCTS, matmul_size, matrix_products
from mask2former.benchmarks.memory import peak_memory
from mask2former.benchmarks.models import (
    DTYPES,
    TASKS,
    autocast,
    compare_logits,
    kept_queries,
    make_sure,
    model_cfg,
    normalized,
    our_model,
    set_precision,
    their_model,
)
from mask2former.benchmarks.results import Row
from mask2former.benchmarks.scenes import Size, random_image, size_name
from mask2former.benchmarks.timing import in_turn, ratios, synchronize
from mask2former.engine.command import import_modules

NAME = "inference"
STAGES = ("backbone", "pixel decoder", "transformer decoder")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure; all models of one size take turns."""
    rows: list[Row] = []
    for size in args.size:
        rows += _Comparison(args, size).rows()
    return rows


class _Comparison:
    """All that runs in turn on images of one size."""

    def __init__(self, args: argparse.Namespace, size: Size) -> None:
        self.args, self.size, self.device = args, size, torch.device(args.device)
        self.image = random_image(size)
        self.models: dict[str, nn.Module] = {}
        self.theirs: dict[str, nn.Module] = {}
        self.differences: dict[str, float] = {}
        for name in args.model:
            cfg = model_cfg(name, args.device, quick=args.quick, opts=args.opts)
            self.models[name] = our_model(cfg, args.seed)
            make_sure(self.models[name], self.image)
            if args.against:
                self.theirs[name] = their_model(cfg, self.models[name].state_dict())
                self.differences[name] = compare_logits(self.models[name], self.theirs[name], self.image)

    def rows(self) -> list[Row]:
        functions: dict[str, Callable[[], object]] = {}
        ours = [(name, dtype, tasks) for name in self.models for dtype in self.args.dtype for tasks in self.args.tasks]
        for name, dtype, tasks in ours:
            functions[f"ours {name} {dtype} {tasks}"] = partial(predict, self.models[name], self.image, dtype, tasks)
        for name, model in self.theirs.items():
            pixels = normalized(self.models[name], self.image)
            for dtype in self.args.their_dtype:
                functions[f"transformers {name} {dtype}"] = partial(_forward, model, pixels, dtype)
        n = matmul_size(self.device, quick=self.args.quick)
        for dtype in self.args.dtype:
            for name, product in matrix_products(n, self.device, DTYPES[dtype]).items():
                functions[f"{name} {dtype}"] = product
        samples = self._in_turn(functions, size_name(self.size))
        rows = [row for key in ours for row in self._rows_of_ours(*key, samples, n)]
        for name in self.theirs:
            for dtype in self.args.their_dtype:
                case = self._case(name, dtype, "transformers", "model alone")
                rows.append(Row(suite=NAME, case=case, seconds=samples[f"transformers {name} {dtype}"]))
        if self.args.stages:
            rows += [row for key in ours for row in self._stage_rows(*key)]
        return rows

    def _rows_of_ours(self, name: str, dtype: str, tasks: str, samples: dict[str, list[float]], n: int) -> list[Row]:
        """One row for each type of theirs, or one without a comparison."""
        seconds = samples[f"ours {name} {dtype} {tasks}"]
        flops = count_flops(_with_tasks(self.models[name], tasks), {"image": self.image})[""]
        figures = {
            "GFLOPs": flops / 1e9,
            "GFLOP/s": flops / median(seconds) / 1e9,
            "queries kept": float(kept_queries(self.models[name], self.image)),
        }
        for product in PRODUCTS:
            best = n**3 / min(samples[f"{product} {dtype}"]) / 1e9
            figures |= {f"{product} GFLOP/s": best, f"share of {product} %": 100 * figures["GFLOP/s"] / best}
        if self.args.memory:
            settings = (name, self.args.device, self.args.quick, self.args.opts, self.size, dtype, tasks)
            prepare = partial(import_modules, self.args.modules)
            figures |= peak_memory(
                _memory_step, *settings, device=self.args.device, threads=self.args.threads, prepare=prepare
            ).figures()
        row = partial(Row, suite=NAME, case=self._case(name, dtype, "ours", tasks), seconds=seconds)
        if name not in self.theirs:
            return [row(figures=figures)]
        figures["logit difference"] = self.differences[name]
        return [
            row(
                versus=f"transformers {their_dtype}",
                ratios=ratios(samples[f"transformers {name} {their_dtype}"], seconds),
                figures=figures,
            )
            for their_dtype in self.args.their_dtype
        ]

    def _stage_rows(self, name: str, dtype: str, tasks: str) -> list[Row]:
        with stage_clock(self.models[name], self.device) as stages:
            whole = self._in_turn({"all": partial(predict, self.models[name], self.image, dtype, tasks)}, "stages")
        rounds = len(whole["all"])
        recorded = {stage: values[-rounds:] for stage, values in stages.items()}
        recorded["post-processing"] = [
            total - sum(parts) for total, *parts in zip(whole["all"], *recorded.values(), strict=True)
        ]
        return [
            Row(
                suite="inference stages",
                case={**self._case(name, dtype, "ours", tasks), "stage": stage},
                seconds=values,
            )
            for stage, values in recorded.items()
        ]

    def _in_turn(self, functions: dict[str, Callable[[], object]], title: str) -> dict[str, list[float]]:
        return in_turn(
            functions,
            rounds=self.args.rounds,
            warmup=self.args.warmup,
            device=self.device,
            title=title,
            repeat_short=title != "stages",
        )

    def _case(self, name: str, dtype: str, whose: str, tasks: str) -> dict[str, str]:
        return {"model": name, "size": size_name(self.size), "dtype": dtype, "of": whose, "tasks": tasks}


@torch.no_grad()
def predict(model: nn.Module, image: Tensor, dtype: str, tasks: str) -> list[dict[str, Any]]:
    """Segment an image (3, H, W) end to end, for one task or "all"."""
    set_precision(model, dtype)
    return _with_tasks(model, tasks)([{"image": image}])


def _with_tasks(model: nn.Module, tasks: str) -> nn.Module:
    for task in TASKS:
        setattr(model, f"{task}_on", tasks in (task, "all"))
    return model


@torch.no_grad()
def _forward(model: nn.Module, pixels: Tensor, dtype: str) -> object:
    with autocast(pixels.device, dtype):
        return model(pixel_values=pixels)


def _memory_step(
    name: str, device: str, quick: bool, opts: list[str], size: Size, dtype: str, tasks: str
) -> Callable[[], object]:
    model, image = our_model(model_cfg(name, device, quick=quick, opts=opts), 0), random_image(size)
    make_sure(model, random_image((64, 64)))
    return partial(predict, model, image, dtype, tasks)


@contextmanager
def stage_clock(model: nn.Module, device: torch.device) -> Iterator[dict[str, list[float]]]:
    """Record the seconds of each stage of every forward pass inside, by stage."""
    ours: Any = model
    head = ours.sem_seg_head
    methods = [(ours.backbone, "forward"), (head.pixel_decoder, "forward_features"), (head.predictor, "forward")]
    recorded: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for stage, (module, method) in zip(STAGES, methods, strict=True):
        setattr(module, method, _timed(getattr(module, method), recorded[stage], device))
    try:
        yield recorded
    finally:
        for module, method in methods:
            delattr(module, method)  # uncovers the method of the class


def _timed(function: Callable[..., Any], seconds: list[float], device: torch.device) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        synchronize(device)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        return result

    return call
