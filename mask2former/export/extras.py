"""Packages that export needs and nothing else does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import ExportError


def import_extra(name: str) -> Any:
    """Import a package of the extra `export`.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise ExportError(
            f"this needs {name}, which is not installed: pip install 'mask2former[export]', or pip install {name}"
        ) from error
