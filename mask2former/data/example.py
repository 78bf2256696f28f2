"""What a mapper gives: an input of the model, of which what few ask for is made when they ask."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.d2.structures import Boxes, Instances
from mask2former.d2.transforms import Transform
from mask2former.modeling.masks import PackedMasks


class Example(dict[str, Any]):
    """A dict with entries that are made of the others at their first use.

    `[]`, `in` and `get` know them from the start, iteration once they are made.
    """

    def __init__(
        self, entries: Mapping[str, Any], later: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None
    ) -> None:
        """
        Args:
            later: functions (to be pickled) from this dict to the value of a key.
        """
        super().__init__(entries)
        self._later = dict(later or {})

    def __missing__(self, key: str) -> Any:
        if key not in self._later:
            raise KeyError(key)
        self[key] = self._later[key](self)
        return self[key]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self._later

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            return self[key]
        return default


class MaskBoxes(Boxes):
    """Boxes around masks, which are looked at when `tensor` is asked for."""

    def __init__(self, masks: PackedMasks, device: torch.device | str | None = None) -> None:
        self.masks = masks
        self._device = masks.device if device is None else torch.device(device)

    def __getattr__(self, name: str) -> Tensor:
        if name != "tensor":
            raise AttributeError(name)
        self.tensor = self.masks.get_bounding_boxes().tensor.to(self._device)
        return self.tensor

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: torch.device | str, **kwargs: Any) -> Boxes:
        """The boxes on another device; the masks stay where they are."""
        return MaskBoxes(self.masks, device)


def label_map(inputs: dict[str, Any], *, ignore_label: int) -> Tensor:
    """(H, W) int64 classes of the pixels, `ignore_label` where there is none."""
    instances: Instances = inputs["instances"]
    labels = torch.full(instances.image_size, ignore_label)
    for category, mask in zip(instances.gt_classes, instances.gt_masks, strict=True):
        labels[mask] = category
    return labels


def padding_mask(inputs: dict[str, Any], *, transform: Transform, size: tuple[int, int]) -> Tensor:
    """(H, W) bool, True where the image, once of (height, width) `size`, was padded by `transform` or after it."""
    outside = torch.from_numpy(transform.apply_segmentation(np.zeros(size, dtype=np.uint8)) != 0)
    height, width = inputs["image"].shape[1:]
    return F.pad(outside, (0, width - outside.shape[1], 0, height - outside.shape[0]), value=True)


def pinned(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same with all tensors in memory that a GPU copies from without the host waiting."""
    entries = {key: _pinned(value) for key, value in inputs.items()}
    return Example(entries, inputs._later) if isinstance(inputs, Example) else entries


def _pinned(value: Any) -> Any:
    if isinstance(value, Instances):
        fields = {key: _pinned(field) for key, field in value.get_fields().items()}
        if isinstance(fields.get("gt_boxes"), MaskBoxes):
            fields["gt_boxes"] = MaskBoxes(fields["gt_masks"])
        return Instances(value.image_size, **fields)
    return value.pin_memory() if isinstance(value, Tensor | PackedMasks) else value
