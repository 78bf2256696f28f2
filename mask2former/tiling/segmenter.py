"""A model that sees an image in tiles, in evaluation as in prediction (keys TEST.TILE_SIZE and TILE_STRIDE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mask2former.d2.config import CfgNode
from mask2former.tiling.tiles import Box, Outputs, Tile, Tiles, merge_outputs

Segmenter = Callable[[Sequence[dict[str, Any]]], list[Outputs]]
"""What maps prepared images to outputs, as a model in evaluation does."""


class TiledSegmenter(nn.Module):
    """Calls a segmenter for tiles of the images that it is given, which are resized for it already.

    An image that is one tile is segmented as it is.
    """

    def __init__(self, segmenter: Segmenter, tiles: Tiles, *, labels_only: bool = False) -> None:
        """
        Args:
            tiles: in pixels of the images that are given.
            labels_only: `sem_seg` is labels (H, W) in place of scores, which `segmenter` has to give.
        """
        super().__init__()
        self.segmenter = segmenter
        self.tiles = tiles
        self._labels_only = labels_only

    def forward(self, batch: Sequence[dict[str, Any]]) -> list[Outputs]:
        """Outputs for each image; see `mask2former.tiling.merge_outputs`.

        Args:
            batch: of each image `image` (3, h, w), and `height` and `width` of the outputs, by default h and w.
        """
        return [self._segment(inputs) for inputs in batch]

    def _segment(self, inputs: dict[str, Any]) -> Outputs:
        image: Tensor = inputs["image"]
        given = (int(image.shape[-2]), int(image.shape[-1]))
        wanted = (int(inputs.get("height", given[0])), int(inputs.get("width", given[1])))
        seen = self.tiles.of(*given)
        tiles = [_scaled(tile, given, wanted) for tile in seen]
        parts = (
            {
                **inputs,
                "image": image[..., part.rows, part.columns].contiguous(),
                "height": tile.bottom - tile.top,
                "width": tile.right - tile.left,
            }
            for part, tile in zip(seen, tiles, strict=True)
        )
        outputs = (self.segmenter([part])[0] for part in parts)
        return merge_outputs(tiles, wanted, outputs, labels_only=self._labels_only)


def in_tiles(cfg: CfgNode, segmenter: Any, *, labels_only: bool = False) -> Any:
    """The segmenter, or one that calls it for tiles where TEST.TILE_SIZE says so."""
    test = cfg.TEST
    if not test.TILE_SIZE:
        return segmenter
    return TiledSegmenter(segmenter, Tiles(test.TILE_SIZE, test.TILE_STRIDE or None), labels_only=labels_only)


def _scaled(tile: Tile, given: tuple[int, int], wanted: tuple[int, int]) -> Tile:
    """The tile in the pixels of an output of another size, to the nearest pixel."""

    def scale(box: Box) -> Box:
        places = zip(box, (*given, *given), (*wanted, *wanted), strict=True)
        top, left, bottom, right = (round(place * to / source) for place, source, to in places)
        return top, left, bottom, right

    top, left, bottom, right = scale((tile.top, tile.left, tile.bottom, tile.right))
    core = scale(tile.core)
    return Tile(top, left, bottom, right, slice(core[0], core[2]), slice(core[1], core[3]))
