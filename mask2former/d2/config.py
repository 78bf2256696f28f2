"""Configuration: the tree of keys, its defaults, and classes that can be built from it."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.config import (
        CfgNode,
        configurable,
        get_cfg,
    )
else:
    from detectron2.config import (
        CfgNode,
        configurable,
        get_cfg,
    )

__all__ = ["CfgNode", "configurable", "get_cfg"]
