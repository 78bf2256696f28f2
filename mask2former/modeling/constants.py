"""Tensors that depend on sizes alone: made once for each, and kept while they are in use."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps

import torch
from torch import Tensor

CACHE_SIZE = 12
"""Results kept of each function: three levels of four image sizes."""


def cached_constant(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep the last results of a function of hashable arguments; they must not be changed in place.

    They are ordinary tensors without gradient wherever they were made first, so that those of an evaluation under
    `torch.inference_mode` serve in training. Compiled code does not ask the cache, but contains the function.
    """

    @lru_cache(maxsize=CACHE_SIZE)
    def remember(*args: Hashable) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args)

    @wraps(function)
    def constant(*args: Hashable) -> Tensor:
        return function(*args) if torch.compiler.is_compiling() else remember(*args)

    return constant
