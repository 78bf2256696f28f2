"""Mask logits at the size of the output, some rows at a time, so that never all of them need be held.

Legend: Q queries (or other maps), h and w of the source, H and W of the target, r and R some rows of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width
_TEMPORARIES = 5  # arrays of the size of some rows of all masks that are alive at once, at most


def working_memory(device: torch.device) -> int:
    """Bytes that suit a device: on a CPU what its caches hold, elsewhere so much that kernels are few and large."""
    return 32 * 2**20 if device.type == "cpu" else 2**30


class OutputMasks:
    """Mask logits (Q, h, w) of a padded image, to be had at the size of the output.

    They are resized to the padded image, the padding is cut off, and the rest is resized to the output.
    """

    def __init__(
        self,
        logits: Tensor,
        *,
        padded_size: Size | None = None,
        image_size: Size | None = None,
        output_size: Size | None = None,
    ) -> None:
        """Sizes are (height, width), by default each is the one before it."""
        self._logits = logits
        self._padded_size = padded_size or (int(logits.shape[1]), int(logits.shape[2]))
        self._image_size = image_size or self._padded_size
        self.size = output_size or self._image_size

    def __len__(self) -> int:
        return len(self._logits)

    def select(self, queries: Tensor) -> OutputMasks:
        """The masks of some queries, by their numbers, int64 (K,)."""
        chosen = copy(self)
        chosen._logits = self._logits[queries]
        return chosen

    def rows(self, rows: slice, before_output: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits (Q, R, W) of the rows from `start` to `stop`; not to be written to.

        Before they get the output's size, `before_output` is applied to maps (Q, R', W').
        """
        height, width = self._image_size
        if rows == slice(0, self.size[0]):
            maps = _resize(self._logits, self._padded_size)[:, :height, :width]
            return _resize(maps if before_output is None else before_output(maps), self.size)
        to_output = _Rows(height, self.size, rows)
        to_padded = _Rows(self._logits.shape[1], self._padded_size, to_output.source)
        maps = to_padded.resize(self._logits[:, to_padded.source])[:, :, :width]
        return to_output.resize(maps if before_output is None else before_output(maps))

    def bands(self, max_bytes: int | None = None, *, num_maps: int = 0) -> Iterator[slice]:
        """Rows from top to bottom, so many at a time that working on them stays within `max_bytes`.

        One row is the least. By default `max_bytes` is what suits the device. With `num_maps` room is left for as
        many other maps (R, W).
        """
        height, width = self.size
        source_height, source_width = self._image_size
        rows_of_source = -(-source_height // height)  # more than one where the output is smaller
        bytes_of_pixel = (_TEMPORARIES * len(self) + num_maps) * rows_of_source * self._logits.element_size()
        budget = working_memory(self._logits.device) if max_bytes is None else max_bytes
        step = max(1, budget // (bytes_of_pixel * max(width, source_width)))
        for start in range(0, height, step):
            yield slice(start, min(start + step, height))


def _resize(maps: Tensor, size: Size) -> Tensor:
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


class _Rows:
    """Some rows of maps that are resized to `target`, which F.interpolate cannot place: it knows no offset."""

    def __init__(self, height: int, target: Size, rows: slice) -> None:
        """`height` is that of the source."""
        height = int(height)  # a tensor while a graph is traced, which NumPy does not take
        half, scale = np.float32(0.5), np.float32(height / target[0])  # as PyTorch reckons
        position = (np.arange(rows.start, rows.stop, dtype=np.float32) + half) * scale - half
        upper = np.floor(position)
        self._weight = (position - upper)[:, None]
        self._upper, self._lower = (side.clip(0, height - 1).astype(np.int64) for side in (upper, upper + 1))
        self._width, self._keeps_height = target[1], height == target[0]
        self.source = rows if self._keeps_height else slice(int(self._upper[0]), int(self._lower[-1]) + 1)
        """The rows of the source that they are made of."""

    def resize(self, maps: Tensor) -> Tensor:
        """Rows (Q, R, W) of the target from `source` of the maps, (Q, r, w)."""
        if maps.shape[2] != self._width:
            # All rows as channels of one line take half as long as in two dimensions.
            lines = F.interpolate(maps.reshape(1, -1, maps.shape[2]), size=self._width, mode="linear")
            maps = lines.view(*maps.shape[:2], self._width)
        if self._keeps_height:
            return maps
        upper, lower = (torch.from_numpy(side - self.source.start) for side in (self._upper, self._lower))
        upper, lower, weight = (t.to(maps.device) for t in (upper, lower, torch.from_numpy(self._weight)))
        return maps.index_select(1, upper).lerp_(maps.index_select(1, lower), weight)
