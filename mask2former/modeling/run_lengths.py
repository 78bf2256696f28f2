"""Masks as COCO's run lengths, made from low-resolution logits without ever holding all pixels of all masks.

Run lengths go down one column after the other. Where rows become known from top to bottom, the ends of all runs are
collected, and put into that order when the last row is there: they are few, as many as masks have pixels at their rims.

Legend: N masks, H and W height and width of the image, R some rows, h and w of a part of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from mask2former.d2.structures import BitMasks, Boxes

from .mask_rows import OutputMasks, Size, working_memory
from .masks import PackedMasks

RLE = dict[str, Any]
"""`size`, [height, width], and `counts`: bytes, which pycocotools reads."""


class RunLengths:
    """Collects the run lengths of N masks, whose rows are given from top to bottom.

    The masks may be those of a part of an image, such as a tile, and nothing around it.
    """

    def __init__(self, count: int, part: Size, *, corner: tuple[int, int] = (0, 0), image: Size | None = None) -> None:
        """
        Args:
            count: N.
            part: h and w.
            corner: row and column of the image where the part begins.
            image: H and W; by default the part is all of it.
        """
        self._count, self._part, self._corner = count, part, corner
        self._image = image or part
        self._done = 0
        self._last: Tensor | None = None
        self._ends: list[np.ndarray] = []

    def add(self, inside: Tensor) -> None:
        """Take the next rows, bool (N, R, w)."""
        if not self._count:
            return
        if self._last is None:
            self._last = torch.zeros_like(inside[:, 0])
        self._note((inside[:, 0] ^ self._last)[:, None], self._done)
        self._note(inside[:, 1:] ^ inside[:, :-1], self._done + 1)
        self._last = inside[:, -1].clone()
        self._done += inside.shape[1]

    def _note(self, changes: Tensor, row: int) -> None:
        """Keep the places where something changes, bool (N, R, w), in the order of the image's columns."""
        rows, width = changes.shape[1:]
        if changes.device.type == "cpu":  # numpy finds them several times as fast
            found = np.flatnonzero(changes.numpy())
        else:
            found = changes.flatten().nonzero().squeeze(1).cpu().numpy()
        mask, place = np.divmod(found, rows * width)
        y, x = np.divmod(place, width)
        (height, image_width), (top, left) = self._image, self._corner
        self._ends.append(mask * (height * image_width + 1) + (x + left) * height + (y + row + top))

    def result(self) -> list[RLE]:
        """The run lengths, when all rows were given."""
        if not self._count:
            return []
        if self._last is None or self._done != self._part[0]:
            raise RuntimeError(f"{self._done} of {self._part[0]} rows were given")
        self._note(self._last[:, None], self._done)  # runs stop where the part does
        area = self._image[0] * self._image[1]
        ends = _without_pairs(np.sort(np.concatenate(self._ends)))
        starts = np.searchsorted(ends, np.arange(self._count + 1) * (area + 1))
        counts = []
        for number, (start, stop) in enumerate(pairwise(starts)):
            own = ends[start:stop] - number * (area + 1)
            counts.append(np.diff(own[own < area], prepend=0, append=area))
        return _compress(counts, self._image)


def _without_pairs(ends: np.ndarray) -> np.ndarray:
    """Of sorted values those that are there once: a run that stops where the next column begins inside goes on."""
    same = ends[1:] == ends[:-1]
    single = np.ones(len(ends), dtype=bool)
    single[1:] &= ~same
    single[:-1] &= ~same
    return ends[single]


def _compress(counts: Sequence[np.ndarray], size: Size) -> list[RLE]:
    objects = [{"size": list(size), "counts": lengths.astype(np.uint32)} for lengths in counts]
    return mask_util.frPyObjects(objects, *size)


@torch.no_grad()
def encode_logits(masks: OutputMasks, *, max_bytes: int | None = None) -> RunLengthMasks:
    """The pixels whose logits are above 0, equal to those of the masks at the size of the output.

    So many rows are made at a time that these take `max_bytes`, by default what suits the device; and of these the ones
    of masks alone that have a logit above 0 there.
    """
    runs = RunLengths(len(masks), masks.size)
    for rows in masks.bands(max_bytes) if len(masks) else ():
        runs.add(masks.rows(rows) > 0)
    return RunLengthMasks(runs.result(), masks.size)


class RunLengthMasks(BitMasks):
    """Masks of one image as run lengths, in main memory: `pred_masks` of outputs for large images.

    A number as index gives the mask, bool (H, W), as does iteration; slices, lists and index or bool tensors give the
    masks chosen, still as run lengths. `tensor` decodes all. They pass for Detectron2's `BitMasks`.

    Args:
        rles: N of them.
        image_size: H and W.
    """

    def __init__(self, rles: Sequence[RLE], image_size: Size) -> None:
        self.rles = list(rles)
        self._image_size = image_size

    @staticmethod
    def encode(
        masks: Tensor | PackedMasks | RunLengthMasks, *, corner: tuple[int, int] = (0, 0), image: Size | None = None
    ) -> RunLengthMasks:
        """Encode masks (N, h, w), if a tensor bool, which may be a part of an image: see `RunLengths`."""
        count, height, width = masks.shape
        rles: list[RLE] = []
        step = max(1, working_memory(masks.device) // (8 * height * width))
        for start in range(0, count, step):
            part = masks[start : start + step]
            dense = part if isinstance(part, Tensor) else part.tensor
            runs = RunLengths(len(dense), (height, width), corner=corner, image=image)
            runs.add(dense)
            rles += runs.result()
        return RunLengthMasks(rles, image or (height, width))

    def __len__(self) -> int:
        return len(self.rles)

    @overload  # type: ignore[override]
    def __getitem__(self, item: int) -> Tensor: ...

    @overload
    def __getitem__(self, item: slice | list[int] | Tensor) -> RunLengthMasks: ...

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> Tensor | RunLengthMasks:
        chosen = np.arange(len(self))[item.cpu().numpy() if isinstance(item, Tensor) else item]
        if chosen.ndim:
            return RunLengthMasks([self.rles[i] for i in chosen.tolist()], self._image_size)
        return torch.from_numpy(mask_util.decode(self.rles[int(chosen)])).bool()

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tensor.numpy(), dtype=dtype)

    def __repr__(self) -> str:
        return f"RunLengthMasks(num_instances={len(self)}, image_size={self.image_size})"

    @property
    def image_size(self) -> Size:  # type: ignore[override]
        """Height and width."""
        return self._image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, H, W."""
        return len(self), *self._image_size

    @property
    def device(self) -> torch.device:
        """Where the masks are: the CPU."""
        return torch.device("cpu")

    @property
    def tensor(self) -> Tensor:  # type: ignore[override]
        """The masks decoded, bool (N, H, W)."""
        masks = torch.empty(self.shape, dtype=torch.bool)
        for i, mask in enumerate(self):
            masks[i] = mask
        return masks

    def areas(self) -> Tensor:
        """Pixels inside each mask, int64 (N,)."""
        return torch.tensor([int(mask_util.area(rle)) for rle in self.rles], dtype=torch.int64)

    def get_bounding_boxes(self) -> Boxes:
        """The smallest boxes (x0, y0, x1, y1) around the masks, (x1, y1) exclusive; 0 for empty masks."""
        boxes = torch.from_numpy(mask_util.toBbox(self.rles).reshape(-1, 4)).float()
        boxes[:, 2:] += boxes[:, :2]
        return Boxes(boxes)

    def to(self, *args: Any, **kwargs: Any) -> RunLengthMasks:
        """The same: run lengths stay in main memory."""
        return self

    def cpu(self) -> RunLengthMasks:
        """The same."""
        return self
