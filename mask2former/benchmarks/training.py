"""A training step: forward, loss and backward; without the optimiser, which is PyTorch's in every implementation.

Timed of ours is all from a mapper's output (uint8 images, targets as the mapper gives them) to gradients. Timed of
transformers is `model(pixel_values, mask_labels, class_labels).loss.backward()` on images that are normalised and
masks that are float already. Norms of a ResNet keep their statistics in both. Gradients are freed before each step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from mask2former.benchmarks.memory import peak_memory
from mask2former.benchmarks.models import (
    autocast,
    compare_logits,
    import_transformers,
    model_cfg,
    our_model,
    precision_of,
    their_model,
)
from mask2former.benchmarks.results import Row
from mask2former.benchmarks.scenes import (
    Size,
    dense_targets,
    random_image,
    size_name,
    training_inputs,
)
from mask2former.benchmarks.timing import in_turn, ratios
from mask2former.engine.accumulation import losses_and_gradients
from mask2former.engine.command import import_modules

NAME = "train"
MEASURES = ("time", "memory", "syncs")


class Settings(NamedTuple):
    """What is trained on what."""

    model: str
    device: str
    dtype: str
    size: Size
    batch: int
    instances: int
    seed: int
    quick: bool
    opts: list[str]
    modules: list[str]

    def cfg(self) -> Any:
        """The configuration of the model."""
        return model_cfg(self.model, self.device, quick=self.quick, opts=self.opts)


def run(args: argparse.Namespace) -> list[Row]:
    """Measure."""
    rows: list[Row] = []
    for size in args.size:
        for model in args.model:
            for dtype in args.dtype:
                shape = (args.batch, args.instances, args.seed, args.quick, args.opts, args.modules)
                rows += _rows(Settings(model, args.device, dtype, size, *shape), args)
    return rows


def our_step(settings: Settings, model: nn.Module | None = None) -> Callable[[], torch.Tensor]:
    """Return a function that runs a step of our model, or of a new one, and gives the loss."""
    model = our_model(settings.cfg(), settings.seed) if model is None else model
    examples = training_inputs(settings.instances, settings.size, settings.batch)
    on_gpu = torch.device(settings.device).type == "cuda"  # then as the training loader: from pinned memory
    (inputs,) = DataLoader(examples, batch_size=settings.batch, collate_fn=list, pin_memory=on_gpu)  # type: ignore[arg-type]
    model.train()
    precision = precision_of(torch.device(settings.device), settings.dtype)

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        losses = losses_and_gradients(model, inputs, parts=1, precision=precision, scale=lambda loss: loss)
        return losses["total_loss"]

    return step


def their_step(settings: Settings, model: nn.Module | None = None) -> Callable[[], torch.Tensor]:
    """Return a function that runs a step of transformers' model, or of a new one, and gives the loss."""
    cfg = settings.cfg()
    model = their_model(cfg) if model is None else model
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    images = [(random_image(settings.size, b) - mean) / std for b in range(settings.batch)]
    classes, masks = dense_targets(settings.instances, settings.size)
    inputs = {
        "pixel_values": torch.stack(images).to(settings.device),
        "class_labels": [classes.to(settings.device)] * settings.batch,
        "mask_labels": [masks.float().to(settings.device) for _ in range(settings.batch)],
    }

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with autocast(torch.device(settings.device), settings.dtype):
            loss: torch.Tensor = model(**inputs).loss.sum()
        loss.backward()
        return loss.detach()

    return step


def count_synchronizations(step: Callable[[], object]) -> dict[str, float]:
    """Return how often a step waits for the GPU, and copies from it, as PyTorch's profiler sees it.

    The profiler's own wait at its end, `cudaDeviceSynchronize`, does not count.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    counts = {event.key: event.count for event in profiler.key_averages()}
    return {
        "waits": float(sum(counts.get(key, 0) for key in ("cudaStreamSynchronize", "cudaEventSynchronize"))),
        "copies to the host": float(sum(count for key, count in counts.items() if key.startswith("Memcpy DtoH"))),
    }


def _rows(settings: Settings, args: argparse.Namespace) -> list[Row]:
    figures: dict[str, dict[str, float]] = {"ours": {}, "transformers": {}}
    names = ["ours", "transformers"] if args.against else ["ours"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    if "memory" in args.measure:
        for name in names:
            figures[name] |= _peak(name, settings, args.threads)
    if "time" in args.measure or "syncs" in args.measure:
        steps = _steps(settings, names, figures["ours"])
        if "time" in args.measure:
            title = f"{settings.model} {size_name(settings.size)}"
            device = torch.device(settings.device)
            seconds = in_turn(
                steps, rounds=args.rounds, warmup=args.warmup, device=device, title=title, repeat_short=False
            )
        for name in names:
            if seconds[name]:
                figures[name]["images/s"] = settings.batch / median(seconds[name])
            if "syncs" in args.measure:
                figures[name] |= count_synchronizations(steps[name])
    if args.against and "memory" in args.measure:
        figures["ours"]["peak / theirs"] = figures["ours"]["peak GiB"] / figures["transformers"]["peak GiB"]
    shape = f"{settings.batch} x {size_name(settings.size)}, {settings.instances} instances each"
    case = {"model": settings.model, "images": shape, "dtype": settings.dtype}
    against = seconds["transformers"] if args.against else []
    ours = Row(
        suite=NAME,
        case={**case, "of": "ours"},
        seconds=seconds["ours"],
        versus="transformers" if against else None,
        ratios=ratios(against, seconds["ours"]) if against else [],
        figures=figures["ours"],
    )
    if not args.against:
        return [ours]
    case["of"] = "transformers"
    return [ours, Row(suite=NAME, case=case, seconds=seconds["transformers"], figures=figures["transformers"])]


def _steps(settings: Settings, names: list[str], figures: dict[str, float]) -> dict[str, Callable[[], object]]:
    """Steps of ours and, if asked for, of theirs with the same weights; their logits are compared first."""
    ours = our_model(settings.cfg(), settings.seed)
    steps: dict[str, Callable[[], object]] = {}
    if "transformers" in names:
        theirs = their_model(settings.cfg(), ours.state_dict())
        figures["logit difference"] = compare_logits(ours, theirs, random_image(settings.size))
        steps["transformers"] = their_step(settings, theirs)
    return {"ours": our_step(settings, ours), **steps}


def _peak(name: str, settings: Settings, threads: int) -> dict[str, float]:
    build, prepare = our_step, partial(import_modules, settings.modules)
    if name == "transformers":
        build, prepare = their_step, partial(import_transformers)
    return peak_memory(build, settings, device=settings.device, threads=threads, prepare=prepare).figures()
