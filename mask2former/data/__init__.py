"""Data sets, and the way from a dataset dict to a batch."""

from . import datasets
from .images import DataError
from .loader import build_test_loader, build_train_loader
from .mappers import (
    DATASET_MAPPER_REGISTRY,
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    DatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
    build_mapper,
)

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "DataError",
    "DatasetMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "datasets",
]
