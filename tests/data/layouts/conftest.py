from collections.abc import Iterator

import pytest

from mask2former.d2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    """Catalogs as they were before each test."""
    saved = [(catalog, dict(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, entries in saved:
        catalog.clear()
        catalog.update(entries)
