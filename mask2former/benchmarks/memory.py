"""Peak memory of a step, measured in a process of its own, which nothing that ran before has touched.

On a CPU it is the resident set: its peak over building, warm-up and steps, less what it was before anything was built
(when all modules were imported already), and, beside it, less what it was once the model was built. On a GPU it is
what PyTorch's allocator held at most, likewise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mask2former.benchmarks.timing import synchronize
from mask2former.engine.memory import peak_resident_memory

GIB = 2**30
STEPS = 2
"""The second step meets the gradients, or the caches, that the first one left."""

Build = Callable[..., Callable[[], object]]


class Peak(NamedTuple):
    """Bytes at the highest point, above two states."""

    above_start: int
    above_model: int

    def figures(self) -> dict[str, float]:
        """Return the numbers of a row."""
        return {"peak GiB": self.above_start / GIB, "peak GiB above the model": self.above_model / GIB}


def peak_memory(build: Build, *arguments: Any, device: str, threads: int, prepare: Callable[[], object]) -> Peak:
    """Measure in a new process.

    Args:
        build: a function of a module that builds a model, and returns what runs one step of it.
        arguments: of `build`; they are pickled.
        device: where the step runs.
        threads: of PyTorch in that process.
        prepare: a function of a module that imports what `build` needs.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, build, arguments, device, threads, prepare).result()


def _measure(
    build: Build, arguments: tuple[Any, ...], device: str, threads: int, prepare: Callable[[], object]
) -> Peak:
    torch.set_num_threads(threads)
    prepare()
    where = torch.device(device)
    start = _current(where)
    step = build(*arguments)
    built = _current(where)
    for _ in range(STEPS):
        step()
        synchronize(where)
    highest = _highest(where)
    return Peak(highest - start, highest - built)


def _current(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _resident_peak()


def _highest(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident_peak()


def _resident_peak() -> int:
    peak = peak_resident_memory()
    if peak is None:
        raise OSError("this system does not say how much memory a process has held at most")
    return peak
