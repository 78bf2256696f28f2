"""Large images, and images of many small objects: predicted in tiles that overlap, and put together again."""

from mask2former.tiling.segmenter import TiledSegmenter, in_tiles
from mask2former.tiling.tiles import Tiles, merge_outputs, predict_in_tiles

__all__ = ["TiledSegmenter", "Tiles", "in_tiles", "merge_outputs", "predict_in_tiles"]
