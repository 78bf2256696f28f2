"""Own data in the layouts that tools write: recognised, described, registered."""

from .description import DataDescription
from .mixture import DataMixture, describe_all, register_descriptions, with_common_classes
from .recognise import describe
from .splits import Split

__all__ = [
    "DataDescription",
    "DataMixture",
    "Split",
    "describe",
    "describe_all",
    "register_descriptions",
    "with_common_classes",
]
