"""Reading weights of any origin safely, and writing and resuming training checkpoints."""

from .checkpointer import Checkpointer
from .download import local_path
from .errors import CheckpointError
from .load import AVERAGE, LoadReport, load_weights
from .model_config import checkpoint_config
from .reader import read_checkpoint
from .transformers_config import check_config, save_transformers
from .writer import write_weights

__all__ = [
    "AVERAGE",
    "CheckpointError",
    "Checkpointer",
    "LoadReport",
    "check_config",
    "checkpoint_config",
    "load_weights",
    "local_path",
    "read_checkpoint",
    "save_transformers",
    "write_weights",
]
