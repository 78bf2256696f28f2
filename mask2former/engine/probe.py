"""How many images fit into memory: real steps on the worst batch that a run can meet, each in a process of its own."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.modeling import build_model
from mask2former.d2.structures import Instances
from mask2former.engine.accumulation import losses_and_gradients
from mask2former.engine.command import import_modules
from mask2former.engine.freeze import freeze
from mask2former.engine.memory import peak_resident_memory
from mask2former.engine.optimizer import build_optimizer
from mask2former.engine.precision import Precision
from mask2former.modeling.masks import PackedMasks

logger = logging.getLogger(__name__)

STEPS = 2
"""The second step meets the optimiser's state, which the first one makes."""
SHARE = {"cuda": 0.9, "cpu": 0.75}
"""Of free memory that a step may take; the loader's workers and fragments need the rest."""
GIB = 2**30


class Worst(NamedTuple):
    """The largest images of a run."""

    height: int
    width: int
    objects: int


class Cost(NamedTuple):
    """What a step takes: bytes at the highest point, None where that is not known, and seconds."""

    memory: int | None
    seconds: float


class Fit(NamedTuple):
    """A batch that fits, why it is no larger, and the seconds of one of its steps, as far as known."""

    batch: int
    reason: str
    seconds: float | None


Measure = Callable[[CfgNode, Worst, int, Sequence[str]], Cost]


def largest_batch(
    cfg: CfgNode,
    worst: Worst,
    limit: int,
    *,
    modules: Sequence[str] = (),
    measure: Measure | None = None,
    memory: int | None = None,
) -> Fit:
    """The largest batch of a process, at most `limit`, that training can take of images like `worst`.

    One and two images are measured, which tells what each further one needs. On a GPU the batch is then tried.

    Args:
        modules: to import first, as `--import` names them.
        measure: instead of a step in a process of its own.
        memory: bytes that are free, instead of what the machine says.

    Raises:
        MemoryError: a single image does not fit.
    """
    measure = measure or measure_step
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    free = memory if memory is not None else free_memory(cfg.MODEL.DEVICE)
    share = SHARE["cuda" if on_gpu else "cpu"]
    shape = f"{worst.width}x{worst.height} with {worst.objects} objects"
    one = measure(cfg, worst, 1, modules)
    if one.memory is None or free is None:
        return Fit(min(limit, 2), "memory cannot be measured on this system", one.seconds * min(limit, 2))
    if one.memory > share * free:
        raise MemoryError(
            f"a step of one image of {shape} takes {one.memory / GIB:.1f} GiB of {free / GIB:.1f} GiB that are free. "
            "Let INPUT.IMAGE_SIZE (INPUT.CROP.SIZE for label maps) be smaller, or choose a smaller --model."
        )
    if limit == 1:
        return Fit(1, "the largest that makes sense", one.seconds)
    two = measure(cfg, worst, 2, modules)
    each = max((two.memory or one.memory) - one.memory, 1)
    batch = min(limit, 1 + int((share * free - one.memory) / each))
    seconds: float | None = two.seconds * batch / 2
    while on_gpu and batch > 2:
        seconds = _try(measure, cfg, worst, batch, modules)
        if seconds is not None:
            break
        batch //= 2
    fits = f"{one.memory / GIB:.1f} GiB for one image of {shape}, {each / GIB:.2f} for each further"
    bound = f" of {free / GIB:.1f} GiB free" if batch < limit else ""
    return Fit(batch, f"{fits}{bound}", seconds)


def _try(measure: Measure, cfg: CfgNode, worst: Worst, batch: int, modules: Sequence[str]) -> float | None:
    """Seconds of a step; None where it does not fit."""
    try:
        return measure(cfg, worst, batch, modules).seconds
    except MemoryError:
        return None


def measure_step(cfg: CfgNode, worst: Worst, batch: int, modules: Sequence[str] = ()) -> Cost:
    """Training steps of `batch` images like `worst`, from random weights, in a new process.

    Raises:
        MemoryError: they do not fit.
    """
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, cfg.dump(), worst, batch, list(modules), threads).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError) as error:  # the first when the system ends it
            shape = f"{batch} images of {worst.width}x{worst.height} with {worst.objects} objects"
            raise MemoryError(f"a step of {shape} does not fit into memory") from error


def _measure(settings: str, worst: Worst, batch: int, modules: list[str], threads: int) -> Cost:
    import_modules(modules)
    torch.set_num_threads(threads)
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(settings))
    device = torch.device(cfg.MODEL.DEVICE)
    model = build_model(cfg).train()
    freeze(model, cfg.MODEL.FREEZE)
    optimizer = build_optimizer(cfg, model)
    precision = Precision.from_config(cfg, device)
    scaler = precision.build_scaler()
    examples = [worst_example(worst, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) for _ in range(batch)]
    seconds = 0.0
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        losses_and_gradients(model, examples, parts=1, precision=precision, scale=scaler.scale)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return Cost(_highest(device), seconds)


def worst_example(worst: Worst, num_classes: int) -> dict[str, object]:
    """An input dict of training: noise, and masks of stripes."""
    size = (worst.height, worst.width)
    planes = torch.randint(256, (-(-worst.objects // 8), *size), dtype=torch.uint8)
    instances = Instances(size)
    instances.gt_classes = torch.arange(worst.objects) % num_classes
    instances.gt_masks = PackedMasks(planes, torch.arange(worst.objects))
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": size[0], "width": size[1]}


def free_memory(device: str) -> int | None:
    """Bytes that a new process may take on a device; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    found = [value for value in (_available(), _container_rest()) if value is not None]
    return min(found, default=None)


def _available() -> int | None:
    file = Path("/proc/meminfo")
    if file.exists():
        line = next(
            (line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable:")), None
        )
        return int(line.split()[1]) * 1024 if line else None
    if sys.platform == "win32":
        return _available_on_windows()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # macOS: half of what there is
    except (AttributeError, ValueError, OSError):
        return None


def _available_on_windows() -> int | None:
    status = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: two numbers of 32 bits, then seven of 64
    ctypes.cast(status, ctypes.POINTER(ctypes.c_ulong))[0] = 64
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009, which other systems lack
    return int(status[2]) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _container_rest() -> int | None:
    """What is left of the memory that a container (cgroup 2) is given; caches of files make room."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((folder / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # none, or "max"
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(limit - used + cached, 0)


def _highest(device: torch.device) -> int | None:
    """Bytes that this process has held at most; on a GPU with what PyTorch's allocator cannot give back."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_resident_memory()
