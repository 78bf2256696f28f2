"""Catalogs of registered data sets and of what is known about them."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]

if TYPE_CHECKING:
    from mask2former.d2.bundled.data import *
else:
    globals().update(objects(__all__, bundled=("data",), official="data.catalog"))
