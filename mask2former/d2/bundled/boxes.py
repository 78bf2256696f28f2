"""Boxes of one image, and how boxes are written. Shapes: N boxes."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class BoxMode(IntEnum):
    """How four numbers (five with an angle) mean a box: absolute in pixels, relative in [0, 1]."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: Any, from_mode: "BoxMode", to_mode: "BoxMode") -> Any:
        """Convert a list or tuple of 4 numbers, or an array or tensor (N, 4); the type stays, the input too.

        Raises:
            NotImplementedError: for anything but XYXY_ABS and XYWH_ABS.
        """
        if from_mode == to_mode:
            return box
        modes = (from_mode, to_mode)
        if set(modes) != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise NotImplementedError(f"Cannot convert boxes from {from_mode!r} to {to_mode!r}.")
        if isinstance(box, list | tuple):
            if len(box) != 4:
                raise ValueError(f"A box has 4 numbers, not {len(box)}: {box}")
            x, y, a, b = box
            sign = 1 if to_mode == BoxMode.XYXY_ABS else -1
            numbers = [x, y, a + sign * x, b + sign * y]
            return tuple(numbers) if isinstance(box, tuple) else numbers
        converted = box.clone() if isinstance(box, Tensor) else box.copy()
        if to_mode == BoxMode.XYXY_ABS:
            converted[..., 2:] += box[..., :2]
        else:
            converted[..., 2:] -= box[..., :2]
        return converted


class Boxes:
    """Boxes of one image: `tensor` is float32 (N, 4), rows (x0, y0, x1, y1) in pixels."""

    def __init__(self, tensor: Tensor | np.ndarray | Sequence[Sequence[float]]) -> None:
        self.tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if self.tensor.numel() == 0:
            self.tensor = self.tensor.reshape(-1, 4)
        if self.tensor.ndim != 2 or self.tensor.shape[1] != 4:
            raise ValueError(f"Boxes have shape (N, 4), not {tuple(self.tensor.shape)}.")

    def clone(self) -> "Boxes":
        """A copy that shares no memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> "Boxes":
        """The boxes on another device."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """(N,) areas in square pixels."""
        width, height = (self.tensor[:, 2:] - self.tensor[:, :2]).unbind(1)
        return width * height

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit x to [0, width] and y to [0, height] in place; `box_size` is (height, width)."""
        if not torch.isfinite(self.tensor).all():
            raise ValueError("Boxes to be clipped are infinite or NaN.")
        height, width = box_size
        x, y = self.tensor[:, 0::2].clamp(0, width), self.tensor[:, 1::2].clamp(0, height)
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both sides are longer than `threshold`."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """All boxes in one."""
        tensors = [boxes.tensor for boxes in boxes_list] or [torch.empty(0, 4)]
        return cls(torch.cat(tensors))

    @property
    def device(self) -> torch.device:
        """Where the boxes are."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes":
        return Boxes(self.tensor[item].reshape(1, 4) if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"
