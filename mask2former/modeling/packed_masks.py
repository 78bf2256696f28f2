"""Masks with eight pixels to a byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
# Times eight bytes of 0 or 1 as one number: in its top byte their bits, that of the first, lowest byte highest.
_GATHER_BITS = sum(1 << (63 - 9 * i) for i in range(8)) - 2**64  # as a signed number


def pack_bits(masks: Tensor) -> Tensor:
    """Bits uint8 (..., W / 8) of masks bool (..., W), the leftmost pixel highest; W must be a multiple of 8."""
    words = masks.contiguous().view(torch.int64)
    return (words * _GATHER_BITS >> 56).to(torch.uint8)


class PackedMasks:
    """Masks (N, H, W) of one image as bits: what `Instances.pred_masks` is where masks would take much memory.

    A number as index gives the mask bool (H, W), as does iteration; slices, lists and index or bool tensors give the
    masks chosen, still packed. `tensor` unpacks all. Several masks may share their bits.
    """

    def __init__(self, bits: Tensor, size: Size, index: Tensor | None = None) -> None:
        """
        Args:
            bits: uint8 (D, H, ceil(W / 8)), see `pack_bits`.
            size: height and width.
            index: int64 (N,), which of the D masks each of the N is; each once by default.
        """
        self._bits = bits
        self._size = size
        self._index = torch.arange(len(bits), device=bits.device) if index is None else index

    @staticmethod
    def from_masks(masks: Tensor) -> PackedMasks:
        """Pack masks bool (N, H, W)."""
        height, width = masks.shape[1:]
        padded = F.pad(masks, (0, -width % 8))
        return PackedMasks(pack_bits(padded), (int(height), int(width)))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, H, W."""
        return len(self), *self._size

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self._bits.device

    @property
    def tensor(self) -> Tensor:
        """All masks, bool (N, H, W)."""
        return self._unpack(self._bits[self._index])

    @overload
    def __getitem__(self, item: int) -> Tensor: ...

    @overload
    def __getitem__(self, item: slice | list[int] | Tensor) -> PackedMasks: ...

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> Tensor | PackedMasks:
        index = self._index[item]
        if index.ndim == 0:
            return self._unpack(self._bits[index])
        return PackedMasks(self._bits, self._size, index)

    def __iter__(self) -> Iterator[Tensor]:
        for number in self._index:
            yield self._unpack(self._bits[number])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tensor.cpu().numpy(), dtype=dtype)

    def to(self, device: torch.device | str) -> PackedMasks:
        """The same masks on another device."""
        return PackedMasks(self._bits.to(device), self._size, self._index.to(device))

    def cpu(self) -> PackedMasks:
        """The same masks in main memory."""
        return self.to("cpu")

    @staticmethod
    def cat(parts: Sequence[PackedMasks]) -> PackedMasks:
        """Join masks of one size."""
        if len({part._size for part in parts}) != 1:
            raise ValueError(f"masks to be joined differ in size: {sorted({part._size for part in parts})}")
        bits = torch.cat([part._bits[part._index] for part in parts])
        return PackedMasks(bits, parts[0]._size)

    def __repr__(self) -> str:
        return f"PackedMasks(num_masks={len(self)}, height={self._size[0]}, width={self._size[1]})"

    def _unpack(self, bits: Tensor) -> Tensor:
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
        pixels = bits.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(1).view(torch.bool)
        return pixels.flatten(-2)[..., : self._size[1]]
