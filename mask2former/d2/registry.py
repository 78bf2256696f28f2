"""`Registry`: name → object, one per role. Detectron2's own is fvcore's, so both sources share it."""

from fvcore.common.registry import Registry

__all__ = ["Registry"]
