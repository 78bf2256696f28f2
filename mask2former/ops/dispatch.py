"""Which implementation of the ops is in use: `MASK2FORMER_OPS` chooses, `backend` tells."""

from __future__ import annotations

import functools
import importlib
import logging
import os

import torch

from . import extension, library

CHOICES = ("auto", "reference", "compiled", "triton")

logger = logging.getLogger(__name__)


def backend(device: torch.device | str = "cpu") -> str:
    """Return the implementation in use for tensors on `device`: "reference", "compiled" or "triton".

    `MASK2FORMER_OPS=auto|reference|compiled|triton` chooses, for the process. `auto`, the default, is the compiled op,
    which is built if need be; else Triton, on GPUs; else the plain PyTorch one, with a warning that says why.
    ONNX knows none but the `reference`, which `torch.jit.trace` takes anyway.

    Raises:
        ValueError: if `MASK2FORMER_OPS` is none of these.
        RuntimeError: if it names an implementation that there is not for this device.
    """
    choice = os.environ.get("MASK2FORMER_OPS") or "auto"
    if choice not in CHOICES:
        raise ValueError(f"MASK2FORMER_OPS={choice} is none of {', '.join(CHOICES)}")
    return _choose(choice, torch.device(device).type)


@functools.cache
def _choose(choice: str, device: str) -> str:
    if choice == "reference" or device == "meta":
        return "reference"
    problems = []
    for name, prepare in (("compiled", extension.problem), ("triton", _triton_problem)):
        if choice in ("auto", name):
            problem = prepare(device)
            if problem is None:
                return name
            problems.append(problem)
    reason = "; ".join(problems)
    if choice != "auto":
        raise RuntimeError(
            f"MASK2FORMER_OPS={choice}, but there is no {choice} op for the device {device}: {reason}. "
            "MASK2FORMER_OPS=auto takes the best one there is"
        )
    logger.warning(
        "Deformable attention runs in plain PyTorch on the device %s, several times slower than it could: %s. "
        "MASK2FORMER_OPS=reference accepts this without a word.",
        device,
        reason,
    )
    return "reference"


def _triton_problem(device: str) -> str | None:
    """Register the Triton kernels, or return why not."""
    if device != "cuda":
        return "Triton needs a GPU of NVIDIA"
    try:
        triton = importlib.import_module(".triton", __package__)
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    try:
        triton.probe()
    except Exception as error:  # no C compiler, no driver, a GPU that is too old: each has its own
        return f"Triton cannot launch its kernels ({str(error).strip()[:200] or type(error).__name__})"
    library.LIBRARY.impl(library.FORWARD, triton.forward, "CUDA")
    library.LIBRARY.impl(library.BACKWARD, triton.backward, "CUDA")
    return None
