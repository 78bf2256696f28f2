"""What the workers of a loader are doing, for whoever waits for them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils.data import get_worker_info


class Busy(NamedTuple):
    """A worker (None: the process itself, without workers), the image that it is at, and for how many seconds."""

    worker: int | None
    image: int
    seconds: float


class Progress:
    """A table in memory that the workers of a loader share: at which index each is, and since when."""

    def __init__(self, workers: int) -> None:
        """
        Args:
            workers: number of worker processes, 0 for none.
        """
        self._table = torch.zeros(workers + 1, 2, dtype=torch.float64).share_memory_()

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Inside, this process is at `index`."""
        worker = get_worker_info()
        row = self._table[worker.id + 1 if worker else 0]
        row[0], row[1] = index, time.time()
        try:
            yield
        finally:
            row[1] = 0

    def busy(self) -> list[Busy]:
        """The workers that are at an index now, the one that has been there longest first."""
        now = time.time()
        rows = [(row - 1, int(index), now - since) for row, (index, since) in enumerate(self._table.tolist()) if since]
        found = [Busy(worker if worker >= 0 else None, index, seconds) for worker, index, seconds in rows]
        return sorted(found, key=lambda busy: -busy.seconds)
