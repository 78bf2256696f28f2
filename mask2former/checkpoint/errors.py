"""What goes wrong with weights files."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit. The message names the file and, where known, the way out."""
