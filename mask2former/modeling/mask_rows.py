"""Mask logits at the size of the output, some rows at a time, so that never all of them need be held.

Every number is the same whichever rows are made together. Hence no F.interpolate along the height, which would place
the pixels of a part of an image elsewhere, and no operation that PyTorch rounds differently near the ends of a tensor
than in its vectorised middle, such as `sigmoid`.

Legend: Q queries (or other maps), h and w of the source, H and W of the target, r and R some rows of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width
_TEMPORARIES = 5  # arrays of the size of some rows of all masks that are alive at once, at most


class Masks(Protocol):
    """Mask logits (Q, H, W) that are made some rows at a time."""

    def __len__(self) -> int: ...

    @property
    def size(self) -> Size:
        """H and W."""

    def select(self, queries: Tensor) -> Masks:
        """The masks of some queries, by their numbers, int64 (K,)."""

    def rows(self, rows: slice) -> Tensor:
        """Logits (Q, R, W) of the rows from `start` to `stop`; not to be written to."""

    def bands(self, max_bytes: int, *, num_maps: int = 0) -> Iterator[slice]:
        """Rows from top to bottom, so many at a time that working on them stays within `max_bytes`.

        One row is the least. With `num_maps` room is left for as many other maps (R, W).
        """


class RowResize:
    """Bilinear resizing of maps, as F.interpolate does it (`align_corners=False`), for any rows of the result."""

    def __init__(self, source: Size, target: Size, device: torch.device) -> None:
        self.source, self.target = source, target
        position = ((torch.arange(target[0]) + 0.5) * (source[0] / target[0]) - 0.5).clamp(min=0)
        low = position.long().clamp(max=source[0] - 1)
        self._first = low.tolist()
        self._low, self._weight = low.to(device), (position - low)[:, None].to(device)

    def source_rows(self, rows: slice) -> slice:
        """The rows of the source that those of the target depend on."""
        if self.source[0] == self.target[0]:
            return rows
        return slice(self._first[rows.start], min(self._first[rows.stop - 1] + 2, self.source[0]))

    def __call__(self, maps: Tensor, rows: slice) -> Tensor:
        """Those rows of the target (Q, R, W) from `source_rows` of them (Q, r, w)."""
        if self.source[1] != self.target[1]:
            # All rows as channels of one line: resized in two dimensions they are not the same bit by bit.
            lines = maps.reshape(1, -1, maps.shape[2])
            lines = F.interpolate(lines, size=self.target[1], mode="linear", align_corners=False)
            maps = lines.view(*maps.shape[:2], self.target[1])
        if self.source[0] == self.target[0]:
            return maps
        below = self._low[rows] - self.source_rows(rows).start
        slope = F.pad(maps[:, 1:] - maps[:, :-1], (0, 0, 0, 1))  # there is nothing below the last row
        return slope.index_select(1, below).mul_(self._weight[rows]).add_(maps.index_select(1, below))


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
        own = (int(logits.shape[1]), int(logits.shape[2]))
        padded = padded_size or own
        image = image_size or padded
        self._to_padded = RowResize(own, padded, logits.device)
        self._to_output = RowResize(image, output_size or image, logits.device)

    def __len__(self) -> int:
        return len(self._logits)

    @property
    def size(self) -> Size:
        return self._to_output.target

    def select(self, queries: Tensor) -> OutputMasks:
        chosen = copy(self)
        chosen._logits = self._logits[queries]
        return chosen

    def rows(self, rows: slice, before_output: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See `Masks.rows`. Before they get the output's size, `before_output` is applied to maps (Q, R', W')."""
        inner = self._to_output.source_rows(rows)
        maps = self._to_padded(self._logits[:, self._to_padded.source_rows(inner)], inner)
        maps = maps[:, :, : self._to_output.source[1]]
        if before_output is not None:
            maps = before_output(maps)
        return self._to_output(maps, rows)

    def bands(self, max_bytes: int, *, num_maps: int = 0) -> Iterator[slice]:
        height, width = self.size
        source_height, source_width = self._to_output.source
        rows_of_source = -(-source_height // height)  # more than one where the output is smaller
        bytes_of_pixel = (_TEMPORARIES * len(self) + num_maps) * rows_of_source * self._logits.element_size()
        step = max(1, max_bytes // (bytes_of_pixel * max(width, source_width)))
        for start in range(0, height, step):
            yield slice(start, min(start + step, height))


def sigmoid(logits: Tensor) -> Tensor:
    """The logistic function, rounded alike wherever a number stands in a tensor."""
    return logits.neg().exp_().add_(1).reciprocal_()
