"""Configuration: the tree of keys, its defaults, and classes that can be built from it."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = ["CfgNode", "configurable", "get_cfg"]

if TYPE_CHECKING:
    from mask2former.d2.bundled.config import *
else:
    globals().update(objects(__all__, bundled=("config",), official="config"))
