"""Masks of one image, as bitmaps or polygons. Shapes: N instances, H height, W width."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.d2.bundled.boxes import Boxes


class BitMasks:
    """Masks of one image: `tensor` is bool (N, H, W)."""

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        self.tensor = torch.as_tensor(tensor, dtype=torch.bool)
        if self.tensor.ndim != 3:
            raise ValueError(f"BitMasks have shape (N, H, W), not {tuple(self.tensor.shape)}.")
        self.image_size = self.tensor.shape[1:]

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """The masks on another device."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> "BitMasks":
        return BitMasks(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        """(N,) bool: the mask has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Polygons, by instance, drawn as COCO's tools draw them."""
        masks = np.zeros((len(polygon_masks), height, width), dtype=bool)
        for mask, polygons in zip(masks, polygon_masks, strict=True):
            if polygons:
                parts = coco_mask.frPyObjects([np.asarray(p) for p in polygons], height, width)
                mask[:] = coco_mask.decode(coco_mask.merge(parts))
        return BitMasks(masks)

    def get_bounding_boxes(self) -> Boxes:
        """The smallest boxes around the masks, on the CPU, (x1, y1) exclusive; zeros for an empty mask."""
        columns, rows = self.tensor.any(dim=1).cpu(), self.tensor.any(dim=2).cpu()
        boxes = torch.zeros(len(self), 4)
        for box, column, row in zip(boxes, columns, rows, strict=True):
            x, y = column.nonzero(), row.nonzero()
            if len(x):
                box[:] = torch.tensor([x[0], y[0], x[-1] + 1, y[-1] + 1])
        return Boxes(boxes)

    @staticmethod
    def cat(bitmasks_list: Sequence["BitMasks"]) -> "BitMasks":
        """All masks in one."""
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))


class PolygonMasks:
    """Masks of one image: `polygons[instance]` is a list of float64 arrays (x0, y0, x1, ...), in pixels."""

    def __init__(self, polygons: list[list[Any]]) -> None:
        if not isinstance(polygons, list) or not all(isinstance(parts, list) for parts in polygons):
            raise ValueError("PolygonMasks need a list, by instance, of lists of polygons.")
        self.polygons = [[self._polygon(part) for part in parts] for parts in polygons]

    @staticmethod
    def _polygon(coordinates: Any) -> np.ndarray:
        if isinstance(coordinates, Tensor):
            coordinates = coordinates.cpu().numpy()
        polygon = np.asarray(coordinates, dtype=np.float64)
        if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"A polygon needs at least 3 pairs (x, y), not shape {polygon.shape}.")
        return polygon

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Itself: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """The smallest boxes around the instances; an instance without polygons has (inf, inf, 0, 0)."""
        boxes = torch.tensor([[np.inf, np.inf, 0.0, 0.0]]).repeat(len(self), 1)
        for box, parts in zip(boxes, self.polygons, strict=True):
            if parts:
                points = torch.from_numpy(np.concatenate(parts).reshape(-1, 2)).float()
                box[:2] = points.amin(dim=0)
                box[2:] = points.amax(dim=0).clamp(min=0)
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """(N,) bool: the instance has a polygon."""
        return torch.tensor([len(parts) > 0 for parts in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> "PolygonMasks":
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, Tensor):
            item = (item.nonzero().squeeze(1) if item.dtype == torch.bool else item).tolist()
        return PolygonMasks([self.polygons[i] for i in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        """All instances in one."""
        return PolygonMasks([parts for masks in polymasks_list for parts in masks.polygons])
