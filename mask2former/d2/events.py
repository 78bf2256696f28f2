"""The storage that training code writes its scalars and images to."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.events import (
        EventStorage,
        get_event_storage,
        has_event_storage,
    )
else:
    from detectron2.utils.events import (
        EventStorage,
        get_event_storage,
        has_event_storage,
    )

__all__ = ["EventStorage", "get_event_storage", "has_event_storage"]
