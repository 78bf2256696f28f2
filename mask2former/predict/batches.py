"""Batches of images that need no padding, though sizes alternate, without an image losing its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
LOOK_AHEAD = 4  # batches that may wait for further images of their size


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    item: T
    key: Hashable
    results: list[R]
    """One, as soon as it is there."""


def in_batches(
    items: Iterable[T], key: Callable[[T], Hashable], run: Callable[[Sequence[T]], Sequence[R]], *, batch_size: int
) -> Iterator[R]:
    """The results of items in their order, made for up to `batch_size` of the same key at a time.

    At most `LOOK_AHEAD` batches of items are held. When they are all that and no batch is full, those run that are of
    the key of the first one.
    """
    waiting: deque[_Waiting[T, R]] = deque()

    def run_first(wanted: Hashable) -> None:
        group = [entry for entry in waiting if entry.key == wanted and not entry.results][:batch_size]
        for entry, result in zip(group, run([entry.item for entry in group]), strict=True):
            entry.results.append(result)

    for item in items:
        waiting.append(_Waiting(item, key(item), []))
        last = waiting[-1].key
        if sum(entry.key == last and not entry.results for entry in waiting) >= batch_size:
            run_first(last)
        elif len(waiting) >= LOOK_AHEAD * batch_size:
            run_first(waiting[0].key)
        while waiting and waiting[0].results:
            yield waiting.popleft().results[0]
    while waiting:
        if not waiting[0].results:
            run_first(waiting[0].key)
        yield waiting.popleft().results[0]
