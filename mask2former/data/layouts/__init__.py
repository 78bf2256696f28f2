"""Own data in the layouts that tools write: recognised, described, registered."""

from .description import DataDescription, register_descriptions, with_common_classes
from .recognise import describe
from .splits import Split

__all__ = ["DataDescription", "Split", "describe", "register_descriptions", "with_common_classes"]
