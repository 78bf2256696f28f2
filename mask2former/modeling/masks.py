"""Target masks as bits, so that an image may have a thousand of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .points import sample_points, sample_shared_points

# T masks, G planes of eight masks, N masks sampled, K points

_DECODED_PIXELS = 2**21
"""At most so many pixels are decoded at a time (but at least one mask), 8 MiB of them."""


class PackedMasks:
    """Masks of one image, eight to a byte.

    Mask `t` is bit `ids[t] % 8` of plane `ids[t] // 8`, so that choosing masks copies none, and moving, resizing or
    padding planes does the same to eight masks at once.

    Args:
        planes: uint8 (G, H, W).
        ids: int64 (T,) in [0, 8 G); by default all 8 G.
    """

    def __init__(self, planes: Tensor, ids: Tensor | None = None) -> None:
        if planes.ndim != 3 or planes.dtype != torch.uint8:
            raise ValueError(f"planes of masks are uint8 (G, H, W), not {planes.dtype} {tuple(planes.shape)}")
        self.planes = planes
        self.ids = torch.arange(8 * len(planes), device=planes.device) if ids is None else ids

    @staticmethod
    def pack(masks: Tensor | PackedMasks) -> PackedMasks:
        """Pack masks (T, H, W), bool or {0, 1}; packed ones are returned as they are."""
        if isinstance(masks, PackedMasks):
            return masks
        count, height, width = masks.shape
        planes = torch.zeros((count + 7) // 8, height, width, dtype=torch.uint8, device=masks.device)
        for bit in range(min(8, count)):
            of_bit = masks[bit::8]
            planes[: len(of_bit)] |= of_bit.to(torch.uint8) << bit
        return PackedMasks(planes, torch.arange(count, device=masks.device))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PackedMasks:
        """Choose masks, as with Detectron2's BitMasks: an index gives one mask, not none of its dimensions."""
        return PackedMasks(self.planes, self.ids[item].reshape(-1))

    def __repr__(self) -> str:
        return f"PackedMasks(num_instances={len(self)}, image_size={self.image_size})"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.planes.shape[1], self.planes.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.planes.device

    @property
    def tensor(self) -> Tensor:
        """The masks unpacked, bool (T, H, W)."""
        return self._bits(self.ids).bool()

    def to(self, *args: Any, **kwargs: Any) -> PackedMasks:
        """The masks on another device; arguments are those of `Tensor.to`."""
        return PackedMasks(self.planes.to(*args, **kwargs), self.ids.to(*args, **kwargs))

    def pin_memory(self) -> PackedMasks:
        """The masks in memory that a GPU copies from without the host waiting."""
        return PackedMasks(self.planes.pin_memory(), self.ids.pin_memory())

    def padded(self, height: int, width: int) -> PackedMasks:
        """The masks with nothing added at the bottom and right up to a size."""
        padding = (0, width - self.image_size[1], 0, height - self.image_size[0])
        if not any(padding):
            return self
        return PackedMasks(F.pad(self.planes, padding), self.ids)

    def sample(self, points: Tensor) -> Tensor:
        """Read every mask at its points, as `sample_points` reads float masks, unpacking only a few at a time.

        Args:
            points: (T, K, 2), or (K, 2) for all masks.

        Returns:
            float32 (T, K).
        """
        height, width = self.image_size
        chunk = max(1, _DECODED_PIXELS // max(1, height * width))
        # Written where they belong: small results between the large temporaries would fragment the heap.
        values = torch.empty(len(self), points.shape[-2], device=self.device)
        for start in range(0, len(self), chunk):
            part = slice(start, start + chunk)
            masks = self._bits(self.ids[part]).float()
            if points.ndim == 2:
                values[part] = sample_shared_points(masks, points)
            else:
                values[part] = sample_points(masks.unsqueeze(1), points[part]).squeeze(1)
        return values

    def _bits(self, ids: Tensor) -> Tensor:
        """Unpack masks: (N,) to uint8 {0, 1} (N, H, W)."""
        shifts = (ids % 8).to(torch.uint8)[:, None, None]
        return (self.planes[ids // 8] >> shifts) & 1
