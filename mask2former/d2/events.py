"""The storage that training code writes its scalars and images to."""

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from fvcore.common.history_buffer import HistoryBuffer

from mask2former.d2 import objects
from mask2former.d2.bundled.events import HISTORY

__all__ = ["EventStorage", "get_event_storage"]

if TYPE_CHECKING:
    from mask2former.d2.bundled.events import *
else:
    globals().update(objects(__all__, bundled=("events",), official="utils.events"))


def bounded_event_storage(start_iter: int) -> "EventStorage":
    """A storage of the last `HISTORY` values of each scalar; Detectron2's own keeps a million, gigabytes in all."""
    storage = EventStorage(start_iter)
    storage._history = defaultdict(partial(HistoryBuffer, max_length=HISTORY))
    return storage
