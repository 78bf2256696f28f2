"""Catalogs of registered data sets and of what is known about them."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.data import (
        DatasetCatalog,
        Metadata,
        MetadataCatalog,
    )
else:
    from detectron2.data import (
        DatasetCatalog,
        MetadataCatalog,
    )
    from detectron2.data.catalog import (
        Metadata,
    )

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]
