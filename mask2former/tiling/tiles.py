"""Large images in tiles that overlap: predicted one after the other, and put together again.

A tile is predicted like an image of its own. What is put together is bounded in memory by the output and a row of
tiles, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

Outputs = dict[str, Any]
"""What a model makes of an image: `sem_seg` (C, H, W), `panoptic_seg`, `instances`, or some of these."""
Predict = Callable[[Iterable[np.ndarray]], Iterator[Outputs]]
"""Outputs for images uint8 (H, W, 3), each at its image's own size, in their order."""


@dataclass(frozen=True)
class Tile:
    """A part of an image, which ends before `bottom` and `right`.

    Its core are the pixels that lie further inside it than inside its neighbours; cores cover the image once.
    """

    top: int
    left: int
    bottom: int
    right: int
    core_rows: slice
    core_columns: slice

    @property
    def rows(self) -> slice:
        """Those of the image."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """Those of the image."""
        return slice(self.left, self.right)

    @property
    def core(self) -> Box:
        """Top, left, bottom and right of the core."""
        return self.core_rows.start, self.core_columns.start, self.core_rows.stop, self.core_columns.stop

    def overlap(self, other: Tile) -> Box | None:
        """Top, left, bottom and right of what two tiles share, if they do."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return (top, left, bottom, right) if top < bottom and left < right else None


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiles:
    """How images are cut.

    Args:
        size: height and width of a tile in pixels, or one number for both. An image that is not larger is one tile;
            else all tiles have this size, but for sides on which the image is smaller.
        stride: pixels from the beginning of a tile to that of the next, likewise; the last ones lie at the edge of
            the image. Three quarters of `size` by default. Objects are joined well if they are seen in the overlap.

    Raises:
        ValueError: of sizes and strides below 1, and strides that leave gaps.
    """

    size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.sides) < 1:
            raise ValueError(f"tiles are at least 1 pixel wide and high, not {self.size}")
        for side, step in zip(self.sides, self.steps, strict=True):
            if not 1 <= step <= side:
                raise ValueError(f"the stride {self.stride} of tiles of {self.size} must lie in 1..{side}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def steps(self) -> tuple[int, int]:
        """Rows and columns from one tile to the next."""
        if self.stride is None:
            return max(1, self.sides[0] * 3 // 4), max(1, self.sides[1] * 3 // 4)
        return (self.stride, self.stride) if isinstance(self.stride, int) else self.stride

    def of(self, height: int, width: int) -> list[Tile]:
        """The tiles of an image of that size, row by row."""
        rows, columns = (
            _spans(length, side, step)
            for length, side, step in zip((height, width), self.sides, self.steps, strict=True)
        )
        return [
            Tile(top, left, bottom, right, core_rows, core_columns)
            for top, bottom, core_rows in rows
            for left, right, core_columns in columns
        ]


def _spans(length: int, side: int, step: int) -> list[tuple[int, int, slice]]:
    """Begin, end and core of the tiles along one side of an image."""
    count = 1 + max(0, -(-(length - side) // step))
    starts = [max(0, min(i * step, length - side)) for i in range(count)]
    stops = [min(start + side, length) for start in starts]
    seams = [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)]
    cores = [slice(start, stop) for start, stop in zip([0, *seams], [*seams, length], strict=True)]
    return list(zip(starts, stops, cores, strict=True))


class Merger(Protocol):
    """Puts one kind of output together."""

    def add(self, tile: Tile, output: Any) -> None:
        """Take the output for the next tile, row by row."""

    def result(self) -> Any:
        """The output for the image, as a model would make it."""


def predict_in_tiles(image: np.ndarray, tiles: Tiles, predict: Predict, *, labels_only: bool = False) -> Outputs:
    """What `predict` makes of an image, uint8 (H, W, 3), tile by tile.

    Returns:
        See `merge_outputs`.
    """
    chosen = tiles.of(*image.shape[:2])
    cut = (np.ascontiguousarray(image[tile.rows, tile.columns]) for tile in chosen)
    parts = cut if len(chosen) > 1 else [image]
    return merge_outputs(chosen, image.shape[:2], predict(parts), labels_only=labels_only)


def merge_outputs(
    tiles: Sequence[Tile], size: tuple[int, int], outputs: Iterable[Outputs], *, labels_only: bool = False
) -> Outputs:
    """Put the outputs for all tiles of an image of `size` (H, W) together, one after the other.

    That of a single tile stays as it is.

    Returns:
        `sem_seg`: the mean of the scores of all tiles that see a pixel; or, with `labels_only`, the class for which
            it is highest, int16 (H, W).
        `panoptic_seg`: see `PanopticMerger`.
        `instances`: see `InstanceMerger`; their masks are `RunLengthMasks`.
    """
    from mask2former.tiling.mean import SemanticMerger
    from mask2former.tiling.objects import InstanceMerger, PanopticMerger

    if len(tiles) == 1:
        return _with_labels(next(iter(outputs)), labels_only)
    kinds: dict[str, Callable[[], Merger]] = {
        "sem_seg": lambda: SemanticMerger(tiles, labels_only=labels_only),
        "panoptic_seg": lambda: PanopticMerger(size),
        "instances": lambda: InstanceMerger(size),
    }
    mergers: dict[str, Merger] = {}
    for tile, output in zip(tiles, outputs, strict=True):
        for key in output.keys() & kinds.keys():
            mergers.setdefault(key, kinds[key]()).add(tile, output[key])
    return {key: merger.result() for key, merger in mergers.items()}


def _with_labels(output: Outputs, labels_only: bool) -> Outputs:
    """The output with classes in place of scores, if these are wanted."""
    if labels_only and "sem_seg" in output:
        output["sem_seg"] = output["sem_seg"].argmax(dim=0).to(torch.int16)
    return output
