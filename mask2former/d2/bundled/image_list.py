"""A batch of images of different sizes. Shapes: B images, C channels, H height, W width."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class ImageList:
    """Images of different sizes in one batch `tensor` (B, C, H, W), padded at the right and the bottom."""

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes  # (height, width) without padding

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """The batch converted as by `Tensor.to`."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Batch tensors (..., H_i, W_i) with equal leading shape.

        Height and width are padded to a multiple of `size_divisibility`. `padding_constraints`, see
        `Backbone.padding_constraints`, goes before it.
        """
        if not tensors or any(t.shape[:-2] != tensors[0].shape[:-2] for t in tensors):
            raise ValueError(f"Need images of equal channels, got shapes {[tuple(t.shape) for t in tensors]}.")
        sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        constraints = padding_constraints or {}
        if (side := constraints.get("square_size", 0)) > 0:
            height = width = side
        divisor = constraints.get("size_divisibility", size_divisibility)
        if divisor > 1:
            height, width = (-(-length // divisor) * divisor for length in (height, width))
        padded = [
            F.pad(t, (0, width - w, 0, height - h), value=pad_value) for t, (h, w) in zip(tensors, sizes, strict=True)
        ]
        return ImageList(torch.stack(padded), sizes)
