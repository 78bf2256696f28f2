"""The storage that training code writes its scalars and images to."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = ["EventStorage", "get_event_storage"]

if TYPE_CHECKING:
    from mask2former.d2.bundled.events import *
else:
    globals().update(objects(__all__, bundled=("events",), official="utils.events"))
