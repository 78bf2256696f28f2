"""Reading weights of any origin safely, and writing and resuming training checkpoints."""

from .checkpointer import Checkpointer
from .load import LoadReport, load_weights
from .reader import CheckpointError, read_checkpoint

__all__ = ["CheckpointError", "Checkpointer", "LoadReport", "load_weights", "read_checkpoint"]
