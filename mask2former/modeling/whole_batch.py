"""What losses are divided by when several processes, or several parts in turn, make up the batch of one step.

The gradient of a step is the mean over processes and parts of the gradients of their losses. It is that of the whole
batch in one piece if each divides its sums not by its own count of masks or pixels, but by the mean of all counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mask2former.d2 import comm


@dataclass(frozen=True)
class WholeBatch:
    """The inputs that this process has in a step, of which the model sees one of `parts`, equally many, at a time."""

    inputs: Sequence[Mapping[str, Any]]
    parts: int


_current: ContextVar[WholeBatch | None] = ContextVar("whole_batch", default=None)


@contextmanager
def seen_in_parts(inputs: Sequence[Mapping[str, Any]], parts: int) -> Iterator[None]:
    """Let losses inside count what is in all `inputs`; a single part is the whole batch, and changes nothing."""
    token = _current.set(WholeBatch(inputs, parts) if parts > 1 else None)
    try:
        yield
    finally:
        _current.reset(token)


def whole_batch() -> WholeBatch | None:
    """The batch that is seen in parts, if it is."""
    return _current.get()


def mean_count(count: Tensor) -> Tensor:
    """Mean over processes and parts of what a loss is divided by; every process must call it.

    Args:
        count: of the whole batch of this process, of any shape.
    """
    if comm.get_world_size() > 1:
        count = count.clone()
        torch.distributed.all_reduce(count)
        count = count / comm.get_world_size()
    batch = whole_batch()
    return count if batch is None else count / batch.parts
