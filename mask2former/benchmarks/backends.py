"""The backends of the deformable attention op and a peer, side by side."""

from __future__ import annotations

import importlib.util
import logging
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
REFERENCE = "reference"
PEER = "torch-ms-deform-attn"
"""A package of the index, measured too where it is installed."""
COMPILED = ("compiled", "triton")

logger = logging.getLogger(__name__)

Op = Callable[..., Tensor]


def implementations(device: torch.device, wanted: str | None = None) -> dict[str, Op]:
    """Return the reference, the peer, and the backend that is wanted or else the first that works, by name.

    Not more backends than these: a process has one implementation of the op for a device.

    Raises:
        ValueError: if the backend that is wanted does not work; the text says why.
    """
    found: dict[str, Op] = {REFERENCE: reference.ms_deform_attn}
    for name in COMPILED if wanted is None else (wanted,):
        try:
            with _chosen(name):
                ops.backend(device)
        except RuntimeError as error:
            if wanted is not None:
                raise ValueError(str(error)) from error
            logger.warning("%s", error)
        else:
            found[name] = partial(_call, name)
            break
    if importlib.util.find_spec("torch_ms_deform_attn"):
        found[PEER] = _call_peer
    return found


def _call_peer(value: Tensor, levels: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The peer takes the levels as tensors, and inputs of one type."""
    import torch_ms_deform_attn

    shapes = torch.tensor(levels, device=value.device)
    areas = shapes.prod(dim=1)
    starts = areas.cumsum(0) - areas
    return torch_ms_deform_attn.ms_deform_attn(value, shapes, starts, locations.to(value.dtype), weights)


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
