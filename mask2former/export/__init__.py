"""Models as files for other runtimes. What is written is run and compared with PyTorch before it is kept."""

from .errors import ExportError
from .reader import ExportedFile, open_exported
from .run import FORMATS, export_model
from .verify import Comparison

__all__ = ["FORMATS", "Comparison", "ExportError", "ExportedFile", "export_model", "open_exported"]
