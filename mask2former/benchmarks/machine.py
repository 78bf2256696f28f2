"""The machine: what it is, and what it can do at best, as measured."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F

from mask2former.benchmarks.timing import in_turn
from mask2former.version import __version__

_PACKAGES = ("torch", "transformers", "torch-ms-deform-attn", "numpy", "scipy", "opencv-python-headless")


PRODUCTS = ("matmul", "convolution")
"""Names of `matrix_products`."""


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return what the machine is, in words."""
    description = {
        "CPU": f"{_cpu_model()}, {len(_usable_cores())} cores",
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "memory": f"{_total_memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return description


def describe_versions() -> dict[str, str]:
    """Return the versions of what is measured and of what it stands on; packages that are missing are left out."""
    versions = {"mask2former": _commit() or __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def copy_bandwidth(device: torch.device, *, quick: bool = False) -> float:
    """Return bytes per second, read and written together, of the best of several large copies."""
    size = (4 if quick else 2048 if device.type == "cuda" else 512) * 2**20
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    samples = in_turn(
        {"copy": lambda: target.copy_(source)},
        rounds=3 if quick else 9,
        warmup=1,
        device=device,
        title="copy bandwidth",
    )
    return 2 * size / min(samples["copy"])


def matmul_size(device: torch.device, *, quick: bool = False) -> int:
    """Return the side of the square matrices whose product measures what the machine can do at best."""
    return 128 if quick else 8192 if device.type == "cuda" else 2048


def matrix_products(n: int, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return a product of two matrices n x n, n a multiple of 32, as PyTorch computes it in two ways.

    They come from different libraries, and which one is faster depends on the processor.
    """
    matrix = torch.ones(n, n, dtype=dtype, device=device)
    image, kernel = matrix.view(1, n, 32, n // 32), matrix.view(n, n, 1, 1)
    functions = (lambda: torch.mm(matrix, matrix), lambda: F.conv2d(image, kernel))
    return dict(zip(PRODUCTS, functions, strict=True))


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _commit() -> str | None:
    """The commit of this checkout, with a plus sign where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
