"""Whether a model runs, or is only being written down."""

import torch


def is_traced() -> bool:
    """Tell whether what is computed now becomes a graph, which shall serve other sizes than those at hand."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
