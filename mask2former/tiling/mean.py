"""Semantic segmentation of large images: the mean of the scores of tiles that overlap."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mask2former.tiling.tiles import Tile


class SemanticMerger:
    """Takes scores (C, h, w) of tiles, row by row of these, and holds no more scores than a row has.

    Args:
        tiles: all of them, in their order.
        labels_only: the result are classes of the highest mean, int16 (H, W), not the means themselves.
    """

    def __init__(self, tiles: Sequence[Tile], *, labels_only: bool = False) -> None:
        self._tops = sorted({tile.top for tile in tiles})
        self._height, self._width = tiles[-1].bottom, tiles[-1].right
        self._labels_only = labels_only
        # How many tiles see a row, and a column: their product see a pixel.
        self._seen_rows, self._seen_columns = torch.zeros(self._height), torch.zeros(self._width)
        for top, bottom in {(tile.top, tile.bottom) for tile in tiles}:
            self._seen_rows[top:bottom] += 1
        for left, right in {(tile.left, tile.right) for tile in tiles}:
            self._seen_columns[left:right] += 1
        self._row = 0
        self._sums: Tensor | None = None
        self._result: Tensor | None = None

    def add(self, tile: Tile, scores: Tensor) -> None:
        """See `Merger`.

        Raises:
            ValueError: of labels, which have no mean.
        """
        if scores.ndim != 3:
            raise ValueError("tiles need scores (C, H, W): turn MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS off")
        if self._sums is None:
            self._sums = scores.new_zeros(len(scores), tile.bottom - tile.top, self._width)
            shape = (self._height, self._width)
            self._result = (
                torch.empty(shape, dtype=torch.int16) if self._labels_only else torch.empty(len(scores), *shape)
            )
        if tile.top > self._tops[self._row]:
            self._finish(tile.top)
        self._sums[:, :, tile.columns] += scores

    def _finish(self, stop: int) -> None:
        """Rows above `stop` are seen no more."""
        assert self._sums is not None
        assert self._result is not None
        top = self._tops[self._row]
        done, rest = self._sums.split([stop - top, self._sums.shape[1] - (stop - top)], dim=1)
        if self._labels_only:
            self._result[top:stop] = done.argmax(dim=0)
        else:
            seen = self._seen_rows[top:stop, None] * self._seen_columns
            torch.div(done, seen.to(done.device), out=done)
            self._result[:, top:stop] = done
        self._sums[:, : rest.shape[1]] = rest.clone()
        self._sums[:, rest.shape[1] :] = 0
        self._row += 1

    def result(self) -> Tensor:
        """Means (C, H, W), or labels (H, W), in main memory."""
        self._finish(self._height)
        assert self._result is not None
        return self._result
