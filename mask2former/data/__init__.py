"""Data sets, and the way from a dataset dict to a batch."""

from . import datasets
from .images import DataError

__all__ = ["DataError", "datasets"]
