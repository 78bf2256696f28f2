"""The catalogs as they are after import of a data set family alone, and then as they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mask2former.d2.data import DatasetCatalog, MetadataCatalog


@contextmanager
def registered_below(root: Path, *registrations: Callable[[Path], None]) -> Iterator[list[str]]:
    """Empties both catalogs, registers what lies below `root`, and yields its names."""
    saved = [(catalog, dict(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for catalog, _ in saved:
        catalog.clear()
    try:
        for register in registrations:
            register(root)
        yield DatasetCatalog.list()
    finally:
        for catalog, entries in saved:
            catalog.clear()
            catalog.update(entries)
