"""Counting what a device would be told to do, on any machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "is_nonzero")
"""Operations whose result the host must know before it goes on."""


class CountOperations(TorchDispatchMode):
    """Counts operations by name while it is entered; views, which compute nothing, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.by_mask = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket.__name__ not in ("_unsafe_view", "detach"):
            self.counts[func.overloadpacket.__name__] += 1
        if func.overloadpacket is torch.ops.aten.index:
            self.by_mask += any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.counts.values())

    @property
    def waits(self) -> int:
        """Operations that the host waits for; `tolist` of a CPU's tensor is none that could be seen."""
        return self.by_mask + sum(self.counts[name] for name in _WAITS)
