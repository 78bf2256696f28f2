"""Masks as bits, so that an image may have a thousand targets, or a hundred instances of twenty million pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.d2.structures import BitMasks, Boxes

from .points import sample_points, sample_shared_points, values_at_once

# T masks, G planes of eight masks, N masks sampled, K points


class PackedMasks(BitMasks):
    """Masks of one image, eight to a byte: `gt_masks` of what mappers give, `pred_masks` of compact outputs.

    Mask `t` is bit `ids[t] % 8` of plane `ids[t] // 8`, so that choosing masks copies none, and moving, resizing or
    padding planes does the same to eight masks at once. Several masks may be the same bit.

    A number as index gives the mask, bool (H, W), as does iteration; slices, lists and index or bool tensors give the
    masks chosen, still packed. `tensor` unpacks all. They pass for Detectron2's `BitMasks`.

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
        """Pack masks (T, H, W): bool, integers of which all but 0 are inside, or floats 0 and 1.

        Packed ones are returned as they are.

        Raises:
            ValueError: of masks of another shape, and floats between 0 and 1, whose meaning is not known.
        """
        if isinstance(masks, PackedMasks):
            return masks
        if masks.ndim != 3:
            raise ValueError(f"masks are (T, H, W), not {tuple(masks.shape)}")
        if masks.is_floating_point() and not bool(((masks == 0) | (masks == 1)).all()):
            raise ValueError("masks of float are 0 or 1: compare soft masks with a threshold, as in `masks > 0.5`")
        return PackedMasks(pack_planes(masks), torch.arange(len(masks), device=masks.device))

    @staticmethod
    def cat(parts: Sequence[PackedMasks]) -> PackedMasks:  # type: ignore[override]
        """Join masks of one size."""
        if len({part.image_size for part in parts}) != 1:
            raise ValueError(f"masks to be joined differ in size: {sorted({part.image_size for part in parts})}")
        starts = np.cumsum([0] + [8 * len(part.planes) for part in parts[:-1]]).tolist()
        ids = torch.cat([part.ids + start for part, start in zip(parts, starts, strict=True)])
        return PackedMasks(torch.cat([part.planes for part in parts]), ids)

    def __len__(self) -> int:
        return len(self.ids)

    @overload  # type: ignore[override]
    def __getitem__(self, item: int) -> Tensor: ...

    @overload
    def __getitem__(self, item: slice | list[int] | Tensor) -> PackedMasks: ...

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> Tensor | PackedMasks:
        ids = self.ids[item]
        return PackedMasks(self.planes, ids) if ids.ndim else self._unpacked(ids[None]).squeeze(0)

    def __iter__(self) -> Iterator[Tensor]:
        for one in self.ids.split(1):
            yield self._unpacked(one).squeeze(0)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tensor.cpu().numpy(), dtype=dtype)

    def __repr__(self) -> str:
        return f"PackedMasks(num_instances={len(self)}, image_size={self.image_size})"

    @property
    def image_size(self) -> tuple[int, int]:  # type: ignore[override]
        """Height and width."""
        return self.planes.shape[1], self.planes.shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """T, H, W."""
        return len(self), *self.image_size

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.planes.device

    @property
    def tensor(self) -> Tensor:  # type: ignore[override]
        """The masks unpacked, bool (T, H, W)."""
        return self._unpacked(self.ids)

    def get_bounding_boxes(self) -> Boxes:
        """The smallest boxes (x0, y0, x1, y1) around the masks, (x1, y1) exclusive, on the CPU; 0 for empty masks."""
        planes, ids = self.planes.cpu().numpy(), self.ids.cpu().numpy()
        columns, rows = (
            torch.from_numpy(np.bitwise_or.reduce(planes, axis=axis)[ids // 8] >> (ids % 8)[:, None] & 1).bool()
            for axis in (1, 2)
        )
        return Boxes(boxes_around(columns, rows))

    def to(self, *args: Any, **kwargs: Any) -> PackedMasks:
        """The masks on another device; arguments are those of `Tensor.to`."""
        return PackedMasks(self.planes.to(*args, **kwargs), self.ids.to(*args, **kwargs))

    def cpu(self) -> PackedMasks:
        """The masks in main memory."""
        return self.to("cpu")

    def pin_memory(self) -> PackedMasks:
        """The masks in memory that a GPU copies from without the host waiting."""
        return PackedMasks(self.planes.pin_memory(), self.ids.pin_memory())

    def padded(self, height: int, width: int) -> PackedMasks:
        """The masks with nothing added at the bottom and right up to a size.

        Raises:
            ValueError: if they are larger.
        """
        padding = (0, width - self.image_size[1], 0, height - self.image_size[0])
        if min(padding) < 0:
            raise ValueError(f"masks of {self.image_size} are larger than {(height, width)}: they cannot be padded")
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
        chunk = max(1, values_at_once(self.device) // max(1, height * width))
        # Written where they belong: small results between the large temporaries would fragment the heap.
        values = torch.empty(len(self), points.shape[-2], device=self.device)
        for start in range(0, len(self), chunk):
            part = slice(start, start + chunk)
            masks = self._unpacked(self.ids[part]).float()
            if points.ndim == 2:
                values[part] = sample_shared_points(masks, points)
            else:
                values[part] = sample_points(masks, points[part])
        return values

    def _unpacked(self, ids: Tensor) -> Tensor:
        """Unpack masks: (N,) to bool (N, H, W)."""
        bits = torch.ones_like(ids, dtype=torch.uint8) << (ids % 8).to(torch.uint8)
        return (self.planes[ids // 8] & bits[:, None, None]) != 0


def pack_planes(masks: Tensor) -> Tensor:
    """Pack masks (T, H, W), where all but 0 is inside, into planes uint8 (ceil(T / 8), H, W)."""
    count, height, width = masks.shape
    planes = torch.zeros((count + 7) // 8, height, width, dtype=torch.uint8, device=masks.device)
    for bit in range(min(8, count)):
        of_bit = masks[bit::8] if masks.dtype == torch.bool else masks[bit::8] != 0
        planes[: len(of_bit)] |= of_bit.to(torch.uint8) << bit
    return planes


def boxes_around(columns: Tensor, rows: Tensor) -> Tensor:
    """Boxes (N, 4) from the columns (N, W) and rows (N, H), bool, that hold a pixel; zero where none does."""
    edges = []
    for occupied in (columns, rows):
        size = occupied.shape[1]
        first = occupied.byte().argmax(dim=1)
        last = size - occupied.flip(1).byte().argmax(dim=1)
        edges.append(torch.stack([first, last], dim=1) * occupied.any(dim=1, keepdim=True))
    (x0, x1), (y0, y1) = (edge.float().unbind(dim=1) for edge in edges)
    return torch.stack([x0, y0, x1, y1], dim=1)
