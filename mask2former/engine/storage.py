"""Where a run keeps its scalars."""

from collections import defaultdict
from functools import partial

from fvcore.common.history_buffer import HistoryBuffer

from mask2former.d2.events import EventStorage

HISTORY = 1000
"""So many of the last values of each scalar are kept: enough to smooth, little however long the run."""


def bounded_event_storage(start_iter: int) -> EventStorage:
    """A storage of the last `HISTORY` values of each scalar; Detectron2's own keeps a million, gigabytes in all."""
    storage = EventStorage(start_iter)
    storage._history = defaultdict(partial(HistoryBuffer, max_length=HISTORY))
    return storage
