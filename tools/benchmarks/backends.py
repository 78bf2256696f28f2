"""The backends of the deformable attention op, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mask2former import ops
from mask2former.ops import reference

VARIABLE = "MASK2FORMER_OPS"
COMPILED = ("compiled", "triton")

Op = Callable[..., Tensor]


def implementations(device: torch.device) -> dict[str, Op]:
    """Return the backends that work on a device, by name; the reference first."""
    found: dict[str, Op] = {"reference": reference.ms_deform_attn}
    for name in COMPILED:
        if _works(name, device):
            found[name] = partial(_call, name)
    return found


def _works(name: str, device: torch.device) -> bool:
    backend: Any = getattr(ops, "backend", None)
    if backend is None:
        return False
    with _chosen(name):
        try:
            return backend(device) == name
        except RuntimeError:  # it says why it cannot be had
            return False


def _call(name: str, *arguments: Any) -> Tensor:
    with _chosen(name):
        return ops.ms_deform_attn(*arguments)


@contextmanager
def _chosen(name: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
