"""What goes wrong with exported files."""


class ExportError(ValueError):
    """A model cannot be exported, or what was written does not compute what the model does."""
